"""Options of each call as a tree of ever smaller sets, down to single options.

The root is all options of a call. Its first child, where that is possible, stands for sharing
the layout of the model's train call (`realloc.search.followers`); the options of all others are
then taken in other layouts. These have one mesh size each, because sizes decide most. Below, a
set is halved along the dimension in which it is widest: seconds or bytes (as logarithms), or
place (in mesh sizes); so the sets that a bound speaks about become alike in what the bound
knows. Children stand together and go from few seconds to many.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.search.candidates import Candidates
from realloc.search.compilation import compiled
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_GROUPS = 192
"""Sets of a call that tables of moves tell apart; smaller sets count as their ancestor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionTree:
    """Sets (V) of options of all calls (C); `root` of a call is the set of all its options."""

    root: Ints
    """[C]"""
    follow: Ints
    """[C], the child of the root that stands for the train call's layout, whichever that will be;
    −1 where the call never has it."""
    child_start: Ints
    """[V]"""
    child_count: Ints
    """[V], 0 for single options."""
    option: Ints
    """[V], the single option, or −1."""
    group: Ints
    """[V], row or column of the set in its call's tables of moves."""
    num_groups: Ints
    """[C]"""
    num_devices: Ints
    """[V], fewest devices of an option of the set."""
    seconds: Floats
    """[V], fewest seconds."""
    area: Floats
    """[V], fewest devices × seconds."""
    slowest: Floats
    """[V], most seconds."""
    resident: Ints
    """[V], fewest resident bytes."""
    active: Ints
    """[V], fewest active bytes."""
    core_first: Ints
    """[V], the devices from here …"""
    core_last: Ints
    """[V], … to before here belong to every option of the set; none where this is not larger."""
    hull_first: Ints
    """[V], no option of the set has a device before this one …"""
    hull_last: Ints
    """[V], … nor this one or one behind it."""
    has_layout: Ints
    """[V], 1 where some option has a layout that another call may share."""

    def sets_of(self, call: int) -> Ints:
        """All sets of a call, its root first."""
        end = self.root[call + 1] if call + 1 < len(self.root) else len(self.option)
        return np.arange(self.root[call], end)

    def single_sets(self, call: int) -> Ints:
        """The sets of a call that are single options."""
        sets = self.sets_of(call)
        return sets[self.option[sets] >= 0]


def build_option_tree(problem: SearchProblem, candidates: Candidates) -> OptionTree:
    """The tree over the candidates of each call."""
    options = candidates.options
    size = 3 * len(options) + 2 * problem.num_calls
    first = problem.option_first_device
    devices = problem.option_num_devices
    shape = np.stack([first, devices], axis=1)
    weights = np.stack([problem.option_resident_bytes, problem.option_active_bytes], axis=1)
    sets = np.zeros((size, len(_SET_COLUMNS)), dtype=np.int64)
    seconds = np.zeros((size, 3))
    root = np.zeros(problem.num_calls, dtype=np.int64)
    num_groups = np.zeros(problem.num_calls, dtype=np.int64)
    follow = _may_follow(problem, candidates)
    used = _build(
        options.copy(),
        candidates.starts,
        shape,
        problem.option_seconds,
        weights,
        problem.option_layout,
        root,
        follow,
        num_groups,
        sets,
        seconds,
        _MOST_GROUPS,
    )
    columns = {name: sets[:used, i].copy() for i, name in enumerate(_SET_COLUMNS)}
    return OptionTree(
        root=root,
        follow=follow,
        num_groups=num_groups,
        seconds=seconds[:used, 0].copy(),
        area=seconds[:used, 1].copy(),
        slowest=seconds[:used, 2].copy(),
        **{name: column for name, column in columns.items() if not name.startswith("_")},
    )


def _may_follow(problem: SearchProblem, candidates: Candidates) -> Ints:
    """[C], 0 for calls that have a layout in common with their train call, else −1."""
    found = np.full(problem.num_calls, -1, dtype=np.int64)
    for call in range(problem.num_calls):
        train = problem.train_call(call)
        if train not in (-1, call):
            layouts = problem.option_layout[candidates.of(call)]
            same = np.intersect1d(layouts, problem.option_layout[candidates.of(train)])
            found[call] = 0 if (same >= 0).any() else -1
    return found


_SET_COLUMNS = (
    "child_start",
    "child_count",
    "option",
    "group",
    "num_devices",
    "resident",
    "active",
    "core_first",
    "core_last",
    "hull_first",
    "hull_last",
    "has_layout",
    "_begin",
    "_end",
)
_CHILD_START, _CHILD_COUNT, _OPTION, _GROUP, _NUM_DEVICES, _RESIDENT, _ACTIVE = range(7)
_CORE_FIRST, _CORE_LAST, _HULL_FIRST, _HULL_LAST, _HAS_LAYOUT, _BEGIN, _END = range(7, 14)


@compiled
def _build(
    options: Ints,
    starts: Ints,
    shape: Ints,
    seconds: Floats,
    weights: Ints,
    layout: Ints,
    root: Ints,
    follow: Ints,
    num_groups: Ints,
    sets: Ints,
    reals: Floats,
    most_groups: int,
) -> int:
    """Fill `sets` and `reals` breadth first, call by call; `options` is reordered in place.

    Returns:
        How many sets there are.
    """
    used = 0
    for c in range(len(starts) - 1):
        root[c] = used
        begin, end = starts[c], starts[c + 1]
        _describe(options, begin, end, shape, seconds, weights, layout, sets, reals, used)
        sets[used, _GROUP] = 0
        groups = 1
        done = used
        used += 1
        while done < used:
            begin, end = sets[done, _BEGIN], sets[done, _END]
            is_open = end - begin > 1 or done == root[c] or done == follow[c]
            sets[done, _OPTION] = -1 if is_open else options[begin]
            sets[done, _CHILD_START] = used
            if done == root[c] and follow[c] >= 0:
                _describe(options, begin, end, shape, seconds, weights, layout, sets, reals, used)
                follow[c] = used
                used += 1
            at = begin
            if done == follow[c]:
                at = end
            while at < end and sets[done, _OPTION] < 0:
                cut = end  # all that lies behind the one cut of a set below the root
                if at == begin or done == root[c]:
                    cut = _cut(options, at, end, shape, seconds, weights, done == root[c])
                _describe(options, at, cut, shape, seconds, weights, layout, sets, reals, used)
                sets[used, _GROUP] = sets[done, _GROUP]
                if groups < most_groups:
                    sets[used, _GROUP] = groups
                    groups += 1
                used += 1
                at = cut
            sets[done, _CHILD_COUNT] = used - sets[done, _CHILD_START]
            if done == root[c] and follow[c] >= 0:
                _sort_children(sets, reals, follow[c] + 1, used)
            else:
                _sort_children(sets, reals, sets[done, _CHILD_START], used)
            done += 1
        num_groups[c] = groups
    return used


@compiled
def _describe(
    options: Ints,
    begin: int,
    end: int,
    shape: Ints,
    seconds: Floats,
    weights: Ints,
    layout: Ints,
    sets: Ints,
    reals: Floats,
    at: int,
) -> None:
    """What the options from `begin` to before `end` have in common."""
    o = options[begin]
    sets[at, _BEGIN] = begin
    sets[at, _END] = end
    sets[at, _NUM_DEVICES] = shape[o, 1]
    sets[at, _RESIDENT] = weights[o, 0]
    sets[at, _ACTIVE] = weights[o, 1]
    sets[at, _CORE_FIRST] = shape[o, 0]
    sets[at, _CORE_LAST] = shape[o, 0] + shape[o, 1]
    sets[at, _HULL_FIRST] = shape[o, 0]
    sets[at, _HULL_LAST] = shape[o, 0] + shape[o, 1]
    sets[at, _HAS_LAYOUT] = 0
    reals[at, 0] = seconds[o]
    reals[at, 1] = seconds[o] * shape[o, 1]
    reals[at, 2] = seconds[o]
    for i in range(begin, end):
        o = options[i]
        last = shape[o, 0] + shape[o, 1]
        sets[at, _NUM_DEVICES] = min(sets[at, _NUM_DEVICES], shape[o, 1])
        sets[at, _RESIDENT] = min(sets[at, _RESIDENT], weights[o, 0])
        sets[at, _ACTIVE] = min(sets[at, _ACTIVE], weights[o, 1])
        sets[at, _CORE_FIRST] = max(sets[at, _CORE_FIRST], shape[o, 0])
        sets[at, _CORE_LAST] = min(sets[at, _CORE_LAST], last)
        sets[at, _HULL_FIRST] = min(sets[at, _HULL_FIRST], shape[o, 0])
        sets[at, _HULL_LAST] = max(sets[at, _HULL_LAST], last)
        sets[at, _HAS_LAYOUT] |= int(layout[o] >= 0)
        reals[at, 0] = min(reals[at, 0], seconds[o])
        reals[at, 1] = min(reals[at, 1], seconds[o] * shape[o, 1])
        reals[at, 2] = max(reals[at, 2], seconds[o])


@compiled
def _cut(
    options: Ints,
    begin: int,
    end: int,
    shape: Ints,
    seconds: Floats,
    weights: Ints,
    by_size: bool,
) -> int:
    """Where the next child ends, the options from `begin` on being put in order for it.

    The root is cut by mesh size. Any other set has two children: it is cut once in the middle
    of its widest dimension, and what lies behind the cut is the second child whole.
    """
    count = end - begin
    keys = np.empty(count)
    if by_size:
        for i in range(count):
            keys[i] = -float(shape[options[begin + i], 1])
        _order(options, begin, keys)
        cut = 1
        while cut < count and keys[cut] == keys[0]:
            cut += 1
        return begin + cut
    if count <= 2:
        return begin + 1
    widest = -1.0
    dimension = 0
    for d in range(4):
        low = np.inf
        high = -np.inf
        for i in range(count):
            value = _coordinate(options[begin + i], d, shape, seconds, weights)
            low = min(low, value)
            high = max(high, value)
        if high - low > widest:
            widest = high - low
            dimension = d
    for i in range(count):
        keys[i] = _coordinate(options[begin + i], dimension, shape, seconds, weights)
    _order(options, begin, keys)
    if widest <= 0.0:
        return begin + count // 2
    middle = (keys[0] + keys[count - 1]) / 2
    cut = 1
    while cut < count - 1 and keys[cut] <= middle:
        cut += 1
    return begin + cut


@compiled
def _coordinate(o: int, dimension: int, shape: Ints, seconds: Floats, weights: Ints) -> float:
    """Place in mesh sizes; logarithms of seconds, resident and active bytes."""
    if dimension == 0:
        return float(np.log(max(seconds[o], 1e-12)))
    if dimension == 1:
        return float(shape[o, 0] / shape[o, 1])
    return 0.5 * float(np.log(weights[o, dimension - 2] + 1e6))


@compiled
def _order(options: Ints, begin: int, keys: Floats) -> None:
    """Sort a stretch of options, and the keys, by their keys; equal ones keep their order."""
    order = np.argsort(keys, kind="mergesort")
    kept = options[begin : begin + len(keys)].copy()
    values = keys.copy()
    for i in range(len(keys)):
        options[begin + i] = kept[order[i]]
        keys[i] = values[order[i]]


@compiled
def _sort_children(sets: Ints, reals: Floats, begin: int, end: int) -> None:
    """From few seconds to many; insertion, because there are few."""
    for i in range(begin + 1, end):
        j = i
        while j > begin and reals[j, 0] < reals[j - 1, 0]:
            for k in range(sets.shape[1]):
                sets[j, k], sets[j - 1, k] = sets[j - 1, k], sets[j, k]
            for k in range(reals.shape[1]):
                reals[j, k], reals[j - 1, k] = reals[j - 1, k], reals[j, k]
            j -= 1
