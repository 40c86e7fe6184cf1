"""A second, slow simulator, written from the text of DESIGN section 6 alone.

It shares no code and no idea with the package: it keeps a list of everything committed, asks
at every step of every piece of work whether all that it waits for is in the list, and looks
up device by device when the latest work on it ended.
"""

from realloc.search.problem import SearchProblem


class Reference:
    """One plan of a problem."""

    def __init__(
        self, problem: SearchProblem, options: list[int], iterations: int = 5, staleness: int = 0
    ) -> None:
        self.problem = problem
        self.options = options
        self.iterations = iterations
        self.staleness = staleness
        self.calls = range(len(problem.call_names))

    def devices(self, call: int) -> set[int]:
        first = int(self.problem.option_first_device[self.options[call]])
        return set(range(first, first + int(self.problem.option_num_devices[self.options[call]])))

    def layout(self, call: int) -> int:
        return int(self.problem.option_layout[self.options[call]])

    def model(self, call: int) -> int:
        return int(self.problem.call_model[call])

    def train_of(self, model: int) -> int | None:
        for call in self.calls:
            if self.model(call) == model and self.problem.call_kind[call] == 2:
                return call
        return None

    def moves(self, call: int) -> bool:
        train = self.train_of(self.model(call))
        if train is None or train == call:
            return False
        here, there = self.layout(call), self.layout(train)
        return here != there and here != -1 and there != -1

    def version(self, call: int, iteration: int) -> int:
        """Number of the train iteration whose weights a call uses; 0 for the initial ones."""
        if self.train_of(self.model(call)) == call:
            return iteration - 1
        return max(0, iteration - 1 - self.staleness)

    # Work is ("call", call, iteration) or ("move", model, layout, version).

    def all_work(self) -> list[tuple]:
        work: list[tuple] = []
        for iteration in range(1, self.iterations + 1):
            for call in self.calls:
                work.append(("call", call, iteration))
                if self.moves(call):
                    move = (
                        "move",
                        self.model(call),
                        self.layout(call),
                        self.version(call, iteration),
                    )
                    if move not in work:
                        work.append(move)
        return work

    def users(self, move: tuple) -> list[tuple[int, int]]:
        """(iteration, call) of the calls that use a reallocation, in order."""
        return [
            (iteration, call)
            for iteration in range(1, self.iterations + 1)
            for call in self.calls
            if self.moves(call)
            and move[1:] == (self.model(call), self.layout(call), self.version(call, iteration))
        ]

    def waits_for(self, work: tuple) -> list[tuple]:
        if work[0] == "move":
            _, model, _, version = work
            return [("call", self.train_of(model), version)] if version >= 1 else []
        _, call, iteration = work
        waits: list[tuple] = [
            ("call", int(a), iteration) for a, b in self.problem.edges if b == call
        ]
        train = self.train_of(self.model(call))
        if train is not None:
            version = self.version(call, iteration)
            if version >= 1:
                waits.append(("call", train, version))
            if self.moves(call):
                waits.append(("move", self.model(call), self.layout(call), version))
        return waits

    def place_in_order(self, work: tuple) -> tuple[int, int, int]:
        if work[0] == "move":
            iteration, call = self.users(work)[0]
            return iteration, call, 0
        return work[2], work[1], 1

    def seconds_and_devices(self, work: tuple) -> tuple[float, set[int]]:
        if work[0] == "call":
            return float(self.problem.option_seconds[self.options[work[1]]]), self.devices(work[1])
        _, model, layout, _ = work
        train = self.train_of(model)
        user = self.users(work)[0][1]
        matrix = self.problem.realloc_seconds[model]
        return float(matrix[self.layout(train)][layout]), self.devices(train) | self.devices(user)

    def schedule(self) -> list[tuple[tuple, float, float]]:
        """(work, start, end) in the order of commitment."""
        todo = self.all_work()
        places = {work: self.place_in_order(work) for work in todo}
        waits = {work: self.waits_for(work) for work in todo}
        ends: dict[tuple, float] = {}
        done: list[tuple[tuple, float, float]] = []
        while todo:
            candidates = []
            for work in todo:
                if all(other in ends for other in waits[work]):
                    ready = max([ends[other] for other in waits[work]], default=0.0)
                    candidates.append((ready, places[work], work))
            ready, _, work = min(candidates, key=lambda candidate: candidate[:2])
            seconds, devices = self.seconds_and_devices(work)
            start = ready
            for other, _, end in done:
                if end > start and self.seconds_and_devices(other)[1] & devices:
                    start = end
            ends[work] = start + seconds
            done.append((work, start, ends[work]))
            todo.remove(work)
        return done

    def seconds(self) -> float:
        ends = dict.fromkeys(range(1, self.iterations + 1), 0.0)
        for work, _, end in self.schedule():
            if work[0] == "call":
                ends[work[2]] = max(ends[work[2]], end)
        return (ends[self.iterations] - ends[1]) / (self.iterations - 1)

    def peak_bytes(self) -> int:
        worst = 0
        for device in range(self.problem.num_devices):
            here = [call for call in self.calls if device in self.devices(call)]
            total = 0
            shared: dict[tuple[int, int], int] = {}
            active = 0
            for call in here:
                resident = int(self.problem.option_resident_bytes[self.options[call]])
                active = max(active, int(self.problem.option_active_bytes[self.options[call]]))
                if self.layout(call) == -1:
                    total += resident
                else:
                    key = (self.model(call), self.layout(call))
                    shared[key] = max(shared.get(key, 0), resident)
            worst = max(worst, total + sum(shared.values()) + active)
        return worst
