"""What each set of options can trade: seconds against its share of the cluster's memory.

An option's share is its devices × bytes over the memory of all devices. The options of a set
are points in a plane; the vertices of their lower convex hull, from the fastest to the one of
least share, are all that a bound with a price on memory can ever take.

The sets of a train call have a second hull each, for the case that the first other call of the
model (the *user*) follows: of the seconds of the two together, option by option, because what
is fast for training may be slow for generation.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled
from realloc.search.option_tree import OptionTree
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SURELY = 1.0 + 1e-12
"""A vertex is left out where it lies above the line of its neighbours by more than rounding."""


class TradeOffs(NamedTuple):
    """Vertices (N) of all hulls, one after the other."""

    trade_start: Ints
    """[2, V + 1], where the vertices of each set's hull begin, and of the second one."""
    trade_seconds: Floats
    """[N], growing within a hull; of both calls in second ones."""
    trade_user_seconds: Floats
    """[N], of the user alone, in second hulls."""
    trade_share: Floats
    """[N], falling within a hull."""


def trade_offs(problem: SearchProblem, tree: OptionTree, users: Ints) -> TradeOffs:
    """The hulls of a tree's sets.

    On a device only the largest active bytes count. One call's active bytes are no more than
    that, so one call is chosen to count its own: the one whose least devices × active bytes are
    most.

    Args:
        users: [C], the user for train calls that have one, else −1.
    """
    devices = problem.option_num_devices.astype(np.float64)
    active = devices * problem.option_active_bytes
    least = [active[problem.options_of(call)].min() for call in range(problem.num_calls)]
    counts = problem.option_call == int(np.argmax(least))
    total = max(1.0, float(problem.num_devices) * problem.device_memory_bytes)
    share = (devices * problem.option_resident_bytes + np.where(counts, active, 0.0)) / total
    user_seconds = _user_seconds(problem, users)
    shape = tree.option, tree.child_start, tree.child_count
    first_start, first = _hulls(*shape, problem.option_seconds, share)
    second_start, second = _hulls(*shape, problem.option_seconds + user_seconds, share)
    return TradeOffs(
        trade_start=np.stack([first_start, second_start + len(first)]),
        trade_seconds=np.concatenate(
            [problem.option_seconds[first], (problem.option_seconds + user_seconds)[second]]
        ),
        trade_user_seconds=np.concatenate([np.zeros(len(first)), user_seconds[second]]),
        trade_share=np.concatenate([share[first], share[second]]),
    )


def _user_seconds(problem: SearchProblem, users: Ints) -> Floats:
    """[O], fewest seconds of the user in the option's layout; infinity where there are none."""
    seconds = np.full(problem.num_options, np.inf)
    for train, user in enumerate(users):
        if user < 0:
            continue
        least = np.full(int(problem.option_layout.max()) + 2, np.inf)  # the last for layout −1
        given = problem.options_of(user)
        np.minimum.at(least, problem.option_layout[given], problem.option_seconds[given])
        least[-1] = np.inf
        own = problem.options_of(train)
        seconds[own] = least[problem.option_layout[own]]
    return seconds


@compiled
def _hulls(
    option: Ints, child_start: Ints, child_count: Ints, seconds: Floats, share: Floats
) -> tuple[Ints, Ints]:
    """[V + 1], where each set's vertices begin; and the vertices, as options."""
    sets = len(option)
    # From the last set to the first: children have larger numbers than their parents.
    vertices = np.empty(4 * sets, dtype=np.int64)
    begin = np.zeros(sets, dtype=np.int64)
    count = np.zeros(sets, dtype=np.int64)
    used = 0
    for v in range(sets - 1, -1, -1):
        given = np.empty(1, dtype=np.int64)
        given[0] = option[v]
        if option[v] < 0:
            most = 0
            for child in range(child_start[v], child_start[v] + child_count[v]):
                most += count[child]
            given = np.empty(most, dtype=np.int64)
            at = 0
            for child in range(child_start[v], child_start[v] + child_count[v]):
                for i in range(begin[child], begin[child] + count[child]):
                    given[at] = vertices[i]
                    at += 1
        if used + len(given) > len(vertices):
            longer = np.empty(2 * len(vertices) + len(given), dtype=np.int64)
            longer[:used] = vertices[:used]
            vertices = longer
        begin[v] = used
        count[v] = _lower_hull(given, seconds, share, vertices, used)
        used += count[v]
    start = np.zeros(sets + 1, dtype=np.int64)
    found = np.empty(used, dtype=np.int64)
    for v in range(sets):
        start[v + 1] = start[v] + count[v]
        found[start[v] : start[v + 1]] = vertices[begin[v] : begin[v] + count[v]]
    return start, found


@compiled
def _lower_hull(given: Ints, seconds: Floats, share: Floats, vertices: Ints, at: int) -> int:
    """Write the vertices among given options to `vertices` from `at` on; returns how many."""
    top = at
    for i in np.argsort(seconds[given], kind="mergesort"):
        o = given[i]
        if seconds[o] == np.inf or (top > at and share[o] >= share[vertices[top - 1]]):
            continue
        if top > at and seconds[o] == seconds[vertices[top - 1]]:
            top -= 1
        while top - at >= 2:
            # Seconds per share: of what came before, and from there to the new point.
            a, b = vertices[top - 2], vertices[top - 1]
            before = (seconds[b] - seconds[a]) / (share[a] - share[b])
            behind = (seconds[o] - seconds[b]) / (share[b] - share[o])
            if before <= behind * _SURELY:
                break
            top -= 1
        vertices[top] = o
        top += 1
    return top - at
