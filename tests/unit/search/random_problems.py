"""Random search problems, full of ties, zero seconds, equal layouts and frozen models."""

import random

import numpy as np

from realloc.search.problem import SearchProblem


def random_problem(
    rng: random.Random,
    *,
    max_calls: int = 6,
    max_options: int = 4,
    max_devices: int = 8,
    memory: int = 10**9,
    windows: bool = False,
) -> SearchProblem:
    """A problem that keeps all rules of the format and little else.

    Args:
        windows: make the graph one of rollout, inference and training, as PPO's is; else any
            acyclic graph, also with calls that wait for nothing.
    """
    num_devices = rng.randint(1, max_devices)
    models, kinds, edges = _ppo_like(rng, max_calls) if windows else _any_graph(rng, max_calls)
    layouts = _Layouts(rng, num_devices)
    scale = rng.choice([_small_integers, _reals])
    rows = []
    for call, model in enumerate(models):
        for _ in range(rng.randint(1, max_options)):
            layout, first, num = layouts.pick(model)
            resident = rng.choice([0, rng.randint(0, 50)])
            rows.append((call, first, num, scale(rng), resident, rng.randint(0, 20), layout))
    rng.shuffle(rows)
    columns = list(zip(*rows, strict=True))
    matrices = {
        model: np.array([[scale(rng) for _ in range(8)] for _ in range(8)])
        * rng.choice([0.0, 0.3, 1.0])
        for model in set(models)
    }
    return SearchProblem(
        num_devices=num_devices,
        device_memory_bytes=memory,
        call_names=tuple(f"call_{i}" for i in range(len(models))),
        call_model=np.array(models),
        call_kind=np.array(kinds),
        edges=np.array(edges, dtype=np.int64).reshape(-1, 2),
        option_call=np.array(columns[0]),
        option_first_device=np.array(columns[1]),
        option_num_devices=np.array(columns[2]),
        option_seconds=np.array(columns[3], dtype=np.float64),
        option_resident_bytes=np.array(columns[4]),
        option_active_bytes=np.array(columns[5]),
        option_layout=np.array(columns[6]),
        realloc_seconds=matrices,
    )


def random_plan(rng: random.Random, problem: SearchProblem) -> list[int]:
    """One option of each call."""
    return [int(rng.choice(list(problem.options_of(c)))) for c in range(problem.num_calls)]


def _small_integers(rng: random.Random) -> float:
    return float(rng.choice([0, 1, 1, 2, 3, 5]))


def _reals(rng: random.Random) -> float:
    return rng.choice([0.0, 0.1, 0.2, 0.3, rng.random(), rng.random() * 10])


class _Layouts:
    """Layouts of each model, each with one device range."""

    def __init__(self, rng: random.Random, num_devices: int) -> None:
        self._rng = rng
        self._num_devices = num_devices
        self._ranges: dict[tuple[int, int], tuple[int, int]] = {}

    def pick(self, model: int) -> tuple[int, int, int]:
        layout = self._rng.choice([-1, *range(self._rng.choice([1, 3, 8]))])
        if layout == -1:
            return (-1, *self._range())
        return (layout, *self._ranges.setdefault((model, layout), self._range()))

    def _range(self) -> tuple[int, int]:
        num = self._rng.randint(1, self._num_devices)
        return self._rng.randint(0, self._num_devices - num), num


def _any_graph(
    rng: random.Random, max_calls: int
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    calls = rng.randint(1, max_calls)
    models = [rng.randint(0, max(0, calls // 2)) for _ in range(calls)]
    kinds = [rng.choice([0, 1, 1, 2, 2]) for _ in range(calls)]
    for call, model in enumerate(models):
        if kinds[call] == 2 and any(
            m == model and k == 2 for m, k in zip(models[:call], kinds[:call], strict=True)
        ):
            kinds[call] = 1
    # Positions need not be a topological order.
    order = rng.sample(range(calls), calls) if rng.random() < 0.4 else list(range(calls))
    density = rng.choice([0.0, 0.3, 0.6])
    edges = [
        (order[a], order[b])
        for a in range(calls)
        for b in range(a + 1, calls)
        if rng.random() < density
    ]
    return models, kinds, edges


def _ppo_like(
    rng: random.Random, max_calls: int
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    trained = rng.randint(1, max(1, (max_calls - 1) // 2))
    scored = rng.randint(0, max(0, max_calls - 2 * trained))
    models = [0]
    kinds = [0]
    for model in range(1, trained):
        models.append(model)
        kinds.append(1)
    for index in range(scored):
        models.append(rng.choice([0, trained + index]))
        kinds.append(1)
    middle = range(1, len(models))
    edges = [(0, b) for b in middle]
    edges += [(a, b) for a in middle for b in middle if a < b and rng.random() < 0.2]
    for model in range(trained):
        models.append(model)
        kinds.append(2)
        edges += [(a, len(models) - 1) for a in (middle or [0])]
    return models, kinds, edges
