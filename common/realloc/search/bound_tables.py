"""Builds the flat arrays of a `Relaxation` from a problem and its tree of options."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.candidates import Candidates
from realloc.search.followers import followers
from realloc.search.move_tables import move_tables
from realloc.search.option_tree import OptionTree, build_option_tree
from realloc.search.overlapping import delays
from realloc.search.problem import SearchProblem
from realloc.search.relaxation import MAX_CALLS_WITH_MEMORY, Bounds, Relaxation
from realloc.search.space import Tables, flat_ints, flat_reals, offsets
from realloc.search.trade_offs import trade_offs
from realloc.search.windows import topological_order, train_together, window_edges

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MAX_TOGETHER = 600
"""Sets of tasks that may run together; a graph with more is bounded without them."""


def build_bounds(
    problem: SearchProblem, candidates: Candidates, rules: SimulationRules, tables: Tables
) -> tuple[Bounds, OptionTree]:
    """The bound of a problem and the sets of options that it speaks about.

    Args:
        tables: of the same problem; the bound reads the seconds of moves there.
    """
    tree = build_option_tree(problem, candidates)
    calls = problem.num_calls
    edges = sorted({(int(a), int(b)) for a, b in problem.edges})
    train = np.array([problem.train_call(call) for call in range(calls)], dtype=np.int64)
    window = window_edges(calls, edges, train, rules)
    movers = _movers(train) if window is not None else []
    later = _later(calls, window or [], train, movers)
    together = _together(later)
    if window is not None and not together:
        window, movers = None, []
    tasks = calls + len(movers)
    moves = _move_arrays(problem, tree, train, tables)
    shared = _shared_arrays(problem, tree, train)
    graph = _graph_arrays(calls, edges, train, rules)
    ints = _tree_arrays(tree) | moves.ints | shared.ints | graph
    ints |= _window_arrays(calls, movers, later, together)
    ints |= {
        "layout": problem.option_layout,
        "model": np.unique(problem.call_model, return_inverse=True)[1],
        "train": train,
    }
    ints |= _int_scratch(calls, tasks, together)
    reals = moves.reals | shared.reals
    reals |= {"seconds": tree.seconds, "area": tree.area, "slowest": tree.slowest}
    reals |= _real_scratch(calls, tasks, len(together), rules.iterations)
    relaxation = Relaxation(
        num_calls=calls,
        num_tasks=tasks,
        has_windows=window is not None,
        num_together=len(together),
        most_packed=_packed(calls),
        num_ends=len(graph["ends"]),
        train_together=train_together(calls, edges, train) and rules.staleness <= 1,
        num_delays=len(graph["delays"]),
        iterations=rules.iterations,
        lag=1 + rules.staleness,
        num_sets=len(tree.option),
        num_devices=problem.num_devices,
        device_memory_bytes=problem.device_memory_bytes,
        **offsets(ints),
        **offsets(reals),
    )
    flat = flat_ints(ints), flat_reals(reals)
    return Bounds(relaxation, *flat, moves=tables.moves), tree


def _tree_arrays(tree: OptionTree) -> dict[str, Ints]:
    return {
        "sets": np.arange(len(tree.option)),
        "child_start": tree.child_start,
        "child_count": tree.child_count,
        "option": tree.option,
        "group": tree.group,
        "num_devices_of": tree.num_devices,
        "resident": tree.resident,
        "active": tree.active,
        "core_first": tree.core_first,
        "core_last": tree.core_last,
        "hull_first": tree.hull_first,
        "hull_last": tree.hull_last,
        "has_layout": tree.has_layout,
        "root": tree.root,
        "follow": tree.follow,
    }


def _graph_arrays(
    calls: int, edges: list[tuple[int, int]], train: Ints, rules: SimulationRules
) -> dict[str, Ints]:
    """Precedence over iterations, for graphs without windows."""
    ends = sorted(set(range(calls)) - {a for a, _ in edges})
    before_start, before = _before(calls, edges)
    behind = _behind(calls, edges, train, ends, rules)
    return {
        "order": np.array(topological_order(calls, edges)),
        "before_start": before_start,
        "before": before,
        "ends": np.array(ends),
        "behind": behind.sum(axis=1),
        "behind_either": (behind[:, None] | behind[None, :]).sum(axis=2),
        "delays": np.array(delays(calls, edges, train, rules), dtype=np.int64),
    }


def _window_arrays(
    calls: int, movers: list[int], later: list[int], together: list[int]
) -> dict[str, Ints]:
    """Tasks of a window, and which of them precedence allows to run together."""
    place = {chosen: index for index, chosen in enumerate(together)}
    last = [1 << (chosen.bit_length() - 1) for chosen in together]
    return {
        "mover": np.array([-1] * calls + movers),
        "move_task": np.array(
            [calls + movers.index(c) if c in movers else -1 for c in range(calls)]
        ),
        "together": np.array(together, dtype=np.int64),
        "without_last": np.array(
            [place.get(chosen - bit, -1) for chosen, bit in zip(together, last, strict=True)],
            dtype=np.int64,
        ),
        "by_size": np.array(
            sorted(range(len(together)), key=lambda i: -together[i].bit_count()), dtype=np.int64
        ),
        "later": np.array(later, dtype=np.int64),
    }


def _int_scratch(calls: int, tasks: int, together: list[int]) -> dict[str, Ints]:
    subsets = 1 << calls if calls <= MAX_CALLS_WITH_MEMORY else 0
    sets = len(together)
    sizes = {
        "left_out": subsets,
        "held": subsets,
        "largest": subsets,
        "mates": calls,
        "vertex": calls,
        "last_vertex": calls,
        "call_devices": calls,
        "call_resident": calls,
        "call_active": calls,
        "call_core_first": calls,
        "call_core_last": calls,
        "call_hull_first": calls,
        "call_hull_last": calls,
        "set_devices": sets,
        "set_clash": sets,
        "task_devices": tasks,
        "task_clash": tasks,
        "fitting": sets,
        "packed": _packed(calls),
        "row_label": max(sets, _packed(calls)),
        "column_label": tasks,
    }
    return {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}


def _real_scratch(calls: int, tasks: int, together: int, iterations: int) -> dict[str, Floats]:
    sizes = {
        "trade_weight": calls,
        "part": calls,
        "mixed": calls,
        "trial": tasks + 2,
        "task_seconds": tasks,
        "worth": calls,
        "solution": tasks,
        "tableau": (max(together, _packed(calls)) + 1) * (tasks + 1),
        "distance": iterations * calls,
    }
    return {name: np.zeros(size) for name, size in sizes.items()}


def _packed(calls: int) -> int:
    """The most sets of calls of which none contains another (Sperner)."""
    return math.comb(calls, calls // 2) if calls <= MAX_CALLS_WITH_MEMORY else 0


class _Arrays(NamedTuple):
    ints: dict[str, Ints]
    reals: dict[str, Floats]


def _shared_arrays(problem: SearchProblem, tree: OptionTree, train: Ints) -> _Arrays:
    """What calls that share their train call's layout take, and what they trade with it."""
    users = _users(train, tree)
    trades, shared = trade_offs(problem, tree, users), followers(problem, tree)
    ints = {
        "user": users,
        "trade_start": trades.trade_start,
        "follow_start": shared.follow_start,
        "follow_active": shared.follow_active,
        "same_start": shared.same_start,
        "same_at": shared.same_at,
        "same": shared.same,
    }
    reals = {
        "follow_seconds": shared.follow_seconds,
        "follow_slowest": shared.follow_slowest,
        "trade_seconds": trades.trade_seconds,
        "trade_user_seconds": trades.trade_user_seconds,
        "trade_share": trades.trade_share,
    }
    return _Arrays(ints, reals)


def _move_arrays(problem: SearchProblem, tree: OptionTree, train: Ints, tables: Tables) -> _Arrays:
    """Tables of the fewest seconds of moves, and where the matrices themselves are."""
    calls = problem.num_calls
    found: list[list[Floats]] = [[np.zeros((0, 0))] for _ in range(2)]
    models = tables.ints[tables.space.model :][:calls]
    arrays = {name: np.full(calls, -1, dtype=np.int64) for name in ("least_start", "least_columns")}
    for call in range(calls):
        if train[call] < 0 or train[call] == call:
            continue
        arrays["least_start"][call] = sum(table.size for table in found[0])
        for kind, table in zip(
            found, move_tables(problem, tree, int(train[call]), call), strict=True
        ):
            kind.append(table)
        arrays["least_columns"][call] = found[0][-1].shape[1]
    arrays["matrix_start"] = tables.ints[tables.space.realloc_start + models]
    arrays["matrix_size"] = tables.ints[tables.space.realloc_size + models]
    least, moved = (np.concatenate([table.ravel() for table in kind]) for kind in found)
    return _Arrays(arrays, {"least": least, "moved": moved})


def _movers(train: Ints) -> list[int]:
    """One call of each trained model: its reallocation becomes a task.

    Others are left out, because calls of one layout share a reallocation.
    """
    movers: dict[int, int] = {}
    for call, owner in enumerate(train):
        if owner >= 0 and owner != call:
            movers.setdefault(int(owner), call)
    return list(movers.values())


def _users(train: Ints, tree: OptionTree) -> Ints:
    """[C], of each train call the first other call of its model, if it may follow, else −1."""
    users = np.full(len(train), -1, dtype=np.int64)
    for call in _movers(train):
        users[train[call]] = call if tree.follow[call] >= 0 else -1
    return users


def _later(calls: int, window: list[tuple[int, int]], train: Ints, movers: list[int]) -> list[int]:
    """Of each task the bit set of itself and of all that it precedes."""
    tasks = calls + len(movers)
    edges = list(window)
    for index, mover in enumerate(movers):
        edges += [(int(train[mover]), calls + index), (calls + index, mover)]
    later = [1 << task for task in range(tasks)]
    for task in reversed(topological_order(tasks, edges)):
        for a, b in edges:
            if a == task:
                later[task] |= later[b]
    return later


def _together(later: list[int]) -> list[int]:
    """All sets of tasks of which no one precedes another, as bit sets.

    Each stands behind the set without its last task. Empty where there are too many.
    """
    tasks = range(len(later))
    sets = [0]
    for task in tasks:
        ordered = later[task] | sum(1 << b for b in tasks if later[b] >> task & 1)
        sets += [chosen | 1 << task for chosen in sets if chosen & ordered == 0]
        if len(sets) > _MAX_TOGETHER:
            return []
    return sets[1:]


def _before(calls: int, edges: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    before = [[a for a, b in edges if b == call] for call in range(calls)]
    start = np.cumsum([0, *(len(b) for b in before)])
    return start, np.array([a for b in before for a in b], dtype=np.int64)


def _behind(
    calls: int, edges: list[tuple[int, int]], train: Ints, ends: list[int], rules: SimulationRules
) -> NDArray[np.bool_]:
    """[ends, K − 1, C], whether a later iteration's run waits for the first run of an end."""
    order = topological_order(calls, edges)
    lag = 1 + rules.staleness
    found = np.zeros((len(ends), rules.iterations - 1, calls), dtype=np.bool_)
    for row, end in enumerate(ends):
        waits = np.zeros((rules.iterations, calls), dtype=bool)
        waits[0, end] = True
        for i in range(rules.iterations):
            for call in order:
                waits[i, call] |= any(waits[i, a] for a, b in edges if b == call)
                waits[i, call] |= i > 0 and waits[i - 1, call]
                owner = train[call]
                if owner >= 0 and owner != call and i >= lag:
                    waits[i, call] |= waits[i - lag, owner]
        found[row] = waits[1:]
    return found
