"""The exact simulator of execution plans: an event list over a few iterations.

Semantics (DESIGN section 6), of which this file is the readable form:

- A call waits for its predecessors of the same iteration. Calls of a trained model wait for
  its train call of the iteration before; with staleness bound η, all but the train call
  itself wait for the train call 1 + η iterations before instead.
- A call whose layout differs from its model's train layout waits for a reallocation: one per
  version and target layout, which occupies the devices of both layouts. Layout −1 never moves.
- Work is committed in the order (ready, iteration, position of the call), a reallocation just
  before the first call that uses it; it starts at max(ready, latest end of work committed
  before on any of its devices).
- The result is (end of the last iteration − end of the first) / (iterations − 1).

Every end is computed as start + seconds in float64, so that any other simulator of the same
semantics gives the same numbers, not nearly the same.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from realloc.core.errors import InvalidInput
from realloc.core.mesh import DeviceMesh
from realloc.dataflow.graph import CallKind

ReallocationSeconds = Callable[[int, int, int], float]
"""(model, from layout, to layout) → seconds."""

_Node = tuple[int, int, int]
"""(iteration, call, 0 for the reallocation before it and 1 for the call itself): sorts as
work is committed among equal ready times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationRules:
    """How long a plan is simulated, and how stale its samples may be."""

    iterations: int = 5
    """Iterations simulated; the first is not counted, so at least 2."""
    staleness: int = 0
    """η: versions by which generation may lag behind training; 0 is synchronous."""

    def __post_init__(self) -> None:
        if self.iterations < 2:
            raise InvalidInput.at("iterations", f"is {self.iterations} and must be at least 2")
        if self.staleness < 0:
            raise InvalidInput.at("staleness", f"is {self.staleness} and must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedCall:
    """A function call with the option that a plan chose for it."""

    name: str
    model: int
    kind: CallKind
    devices: DeviceMesh
    seconds: float
    resident_bytes: int
    """Bytes on each device while the plan is in force: weights, optimizer states."""
    active_bytes: int
    """Further bytes on each device while the call runs."""
    layout: int
    """Index within the model; −1 where no weights move."""


class WorkKind(Enum):
    """What occupies devices."""

    CALL = "call"
    REALLOCATION = "reallocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One bar of a timeline."""

    kind: WorkKind
    name: str
    """The call, or the first call that uses the reallocated layout."""
    iteration: int
    """Counts from 1."""
    meshes: tuple[DeviceMesh, ...]
    """One mesh; two for a reallocation (train layout, target layout)."""
    ready: float
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Everything that a simulated plan does, in the order of commitment."""

    works: tuple[Work, ...]
    iteration_ends: tuple[float, ...]
    """End of each iteration's last call."""
    seconds: float
    """Seconds per iteration: (last end − first end) / (iterations − 1)."""


def simulate(
    calls: tuple[PlacedCall, ...],
    edges: Iterable[tuple[int, int]],
    reallocation_seconds: ReallocationSeconds,
    rules: SimulationRules,
) -> Timeline:
    """The timeline of a plan.

    Args:
        calls: in the order of their positions; at most one train call per model.
        edges: (call, call that waits for it) within an iteration, without cycles.
        reallocation_seconds: asked only for pairs of different layouts, neither −1.
        rules: iterations and staleness.
    """
    return _Simulation(calls, tuple(edges), reallocation_seconds, rules).run()


def peak_bytes(calls: tuple[PlacedCall, ...], num_devices: int) -> list[int]:
    """Peak bytes of each device: resident bytes of all layouts, and the largest active bytes.

    A (model, layout) counts once per device, with the largest figure among the calls that
    share it; layout −1 is shared with nobody.
    """
    peaks = []
    for device in range(num_devices):
        present = [(i, c) for i, c in enumerate(calls) if device in c.devices.devices]
        resident: dict[tuple[int, int, int], int] = {}
        for index, call in present:
            key = (call.model, call.layout, index if call.layout == -1 else -1)
            resident[key] = max(resident.get(key, 0), call.resident_bytes)
        active = max((call.active_bytes for _, call in present), default=0)
        peaks.append(sum(resident.values()) + active)
    return peaks


class _Simulation:
    """The state of one run: what is ready, and until when each device is claimed."""

    def __init__(
        self,
        calls: tuple[PlacedCall, ...],
        edges: tuple[tuple[int, int], ...],
        reallocation_seconds: ReallocationSeconds,
        rules: SimulationRules,
    ) -> None:
        self._calls = calls
        self._rules = rules
        self._seconds = reallocation_seconds
        self._train = {c.model: i for i, c in enumerate(calls) if c.kind is CallKind.TRAIN}
        self._users = self._layout_users()
        self._waiting: dict[_Node, int] = {}
        self._ready: dict[_Node, float] = {}
        self._followers: dict[_Node, list[_Node]] = {}
        for node, others in self._dependencies(edges).items():
            self._waiting[node] = len(others)
            self._ready[node] = 0.0
            for other in others:
                self._followers.setdefault(other, []).append(node)

    def run(self) -> Timeline:
        """Commit all work in order."""
        free: dict[int, float] = {}
        heap = [(0.0, node) for node, count in self._waiting.items() if count == 0]
        heapq.heapify(heap)
        works: list[Work] = []
        while heap:
            ready, node = heapq.heappop(heap)
            work = self._commit(node, ready, free)
            works.append(work)
            for follower in self._followers.get(node, ()):
                self._ready[follower] = max(self._ready[follower], work.end)
                self._waiting[follower] -= 1
                if self._waiting[follower] == 0:
                    heapq.heappush(heap, (self._ready[follower], follower))
        return self._timeline(works)

    def _layout_users(self) -> dict[tuple[int, int], list[int]]:
        """(model, target layout) → the calls that need weights moved there, by position."""
        users: dict[tuple[int, int], list[int]] = {}
        for index, call in enumerate(self._calls):
            train = self._train.get(call.model)
            if train is None or train == index:
                continue
            source = self._calls[train].layout
            if -1 not in (source, call.layout) and source != call.layout:
                users.setdefault((call.model, call.layout), []).append(index)
        return users

    def _dependencies(self, edges: tuple[tuple[int, int], ...]) -> dict[_Node, list[_Node]]:
        """What each call and reallocation of each iteration waits for."""
        mover = {call: users[0] for users in self._users.values() for call in users}
        movers = set(mover.values())
        waits: dict[_Node, list[_Node]] = {}
        for iteration in range(1, self._rules.iterations + 1):
            for index, call in enumerate(self._calls):
                waits[iteration, index, 1] = [
                    (iteration, before, 1) for before in {a for a, b in edges if b == index}
                ]
                train = self._train.get(call.model)
                if train is None:
                    continue
                lag = 1 if train == index else 1 + self._rules.staleness
                version = [(iteration - lag, train, 1)] if iteration > lag else []
                if index not in mover:
                    waits[iteration, index, 1] += version
                    continue
                # Version 0 is moved once, in iteration 1, however long it is used.
                moved_in = iteration if version else 1
                waits[iteration, index, 1].append((moved_in, mover[index], 0))
                if index in movers and moved_in == iteration:
                    waits[iteration, index, 0] = version
        return waits

    def _commit(self, node: _Node, ready: float, free: dict[int, float]) -> Work:
        iteration, index, kind = node
        call = self._calls[index]
        meshes: tuple[DeviceMesh, ...] = (call.devices,)
        seconds = call.seconds
        if kind == 0:
            source = self._calls[self._train[call.model]]
            meshes = (source.devices, call.devices)
            seconds = self._seconds(call.model, source.layout, call.layout)
        devices = {device for mesh in meshes for device in mesh.devices}
        start = max(ready, max(free.get(device, 0.0) for device in devices))
        end = start + seconds
        for device in devices:
            free[device] = end
        work_kind = WorkKind.CALL if kind else WorkKind.REALLOCATION
        return Work(
            kind=work_kind,
            name=call.name,
            iteration=iteration,
            meshes=meshes,
            ready=ready,
            start=start,
            end=end,
        )

    def _timeline(self, works: list[Work]) -> Timeline:
        assert len(works) == len(self._waiting), "the edges have a cycle"
        ends = [0.0] * self._rules.iterations
        for work in works:
            if work.kind is WorkKind.CALL:
                ends[work.iteration - 1] = max(ends[work.iteration - 1], work.end)
        return Timeline(
            works=tuple(works),
            iteration_ends=tuple(ends),
            seconds=(ends[-1] - ends[0]) / (self._rules.iterations - 1),
        )
