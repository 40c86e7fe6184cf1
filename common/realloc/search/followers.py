"""What it takes to be in the layout of a model's train call, for every set of the train call.

Sharing a layout saves a move and a copy of the weights, and ties two calls to one strategy; so
branch and bound decides early whether a call shares. Where it does, it *follows*: its option is
open until the train call's is chosen.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled
from realloc.search.option_tree import OptionTree
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Followers(NamedTuple):
    """Tables of all calls that may follow, one after the other."""

    follow_start: Ints
    """[C], where a call's table begins: an entry per set of its train call."""
    follow_seconds: Floats
    """Fewest seconds of the call in a layout of the set; infinity where it can have none."""
    follow_slowest: Floats
    """Most seconds there; −infinity where there are none."""
    follow_active: Ints
    """Fewest active bytes there."""
    same_start: Ints
    """[C], where a call's entries in `same_at` begin: one per layout, and one more."""
    same_at: Ints
    """Where the layout's sets begin in `same`."""
    same: Ints
    """Sets of one option."""


def followers(problem: SearchProblem, tree: OptionTree) -> Followers:
    """The tables of a tree."""
    calls = problem.num_calls
    seconds, slowest = [np.zeros(0)], [np.zeros(0)]
    active = [np.zeros(0, dtype=np.int64)]
    same_at, same = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    follow_start = np.zeros(calls, dtype=np.int64)
    same_start = np.zeros(calls, dtype=np.int64)
    for call in range(calls):
        if tree.follow[call] < 0:
            continue
        train = problem.train_call(call)
        single = tree.single_sets(call)
        layout = problem.option_layout[tree.option[single]]
        single, layout = single[layout >= 0], layout[layout >= 0]
        order = np.argsort(layout, kind="stable")
        follow_start[call] = sum(len(table) for table in seconds)
        same_start[call] = sum(len(table) for table in same_at)
        layouts = int(problem.option_layout.max()) + 1
        begins = np.searchsorted(layout[order], np.arange(layouts + 1))
        same_at.append(begins + sum(len(sets) for sets in same))
        same.append(single[order])
        options = tree.option[single]
        least_seconds = np.full(layouts + 1, np.inf)  # the last for layout −1
        np.minimum.at(least_seconds, layout, problem.option_seconds[options])
        most_seconds = np.full(layouts + 1, -np.inf)
        np.maximum.at(most_seconds, layout, problem.option_seconds[options])
        least_active = np.full(layouts + 1, np.iinfo(np.int64).max)
        np.minimum.at(least_active, layout, problem.option_active_bytes[options])
        sets = tree.sets_of(train)
        shape = tree.child_start[sets] - sets[0], tree.child_count[sets]
        of = np.where(tree.option[sets] >= 0, problem.option_layout[tree.option[sets]], -1)
        seconds.append(least_seconds[of])
        slowest.append(-most_seconds[of])
        active.append(least_active[of])
        _fold(*shape, seconds[-1])
        _fold(*shape, slowest[-1])
        _fold(*shape, active[-1])
    return Followers(
        follow_start=follow_start,
        follow_seconds=np.concatenate(seconds),
        follow_slowest=-np.concatenate(slowest),
        follow_active=np.concatenate(active),
        same_start=same_start,
        same_at=np.concatenate(same_at),
        same=np.concatenate(same),
    )


@compiled
def _fold(child_start: Ints, child_count: Ints, values: Floats | Ints) -> None:
    """Give every set the least value of its children, which have larger numbers."""
    for v in range(len(values) - 1, -1, -1):
        for child in range(child_start[v], child_start[v] + child_count[v]):
            if child == child_start[v] or values[child] < values[v]:
                values[v] = values[child]
