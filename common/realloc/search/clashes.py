"""Tasks of a choice: their fewest seconds and devices, and which exclude which."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.facts import follows, least_seconds, may_follow
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


_NO_MOVE, _UNKNOWN_MOVE = -1, -2


@inlined
def _chosen_move(r: Relaxation, ints: Ints, choice: Ints, c: int) -> int:
    """Where the seconds of the reallocation before call `c` stand; `_NO_MOVE` where there is
    none or may be none, `_UNKNOWN_MOVE` where not both options are chosen."""
    if may_follow(r, ints, choice, c):
        return _NO_MOVE
    one = ints[r.option + choice[ints[r.train + c]]]
    two = ints[r.option + choice[c]]
    if one < 0 or two < 0:
        return _UNKNOWN_MOVE
    source = ints[r.layout + one]
    target = ints[r.layout + two]
    if source < 0 or target < 0 or source == target:
        return _NO_MOVE
    return int(ints[r.matrix_start + c] + source * ints[r.matrix_size + c] + target)


@inlined
def _pair_of_groups(r: Relaxation, ints: Ints, choice: Ints, c: int) -> int:
    """Where the least facts of moves between the two sets' groups of layouts stand."""
    columns = ints[r.group + choice[ints[r.train + c]]] * ints[r.least_columns + c]
    return int(ints[r.least_start + c] + columns + ints[r.group + choice[c]])


@inlined
def move_seconds(
    r: Relaxation, ints: Ints, reals: Floats, moves: Floats, choice: Ints, c: int
) -> float:
    """Fewest seconds of the reallocation before call `c`."""
    move = _chosen_move(r, ints, choice, c)
    if move == _NO_MOVE:
        return 0.0
    if move >= 0:
        return float(moves[move])
    return float(reals[r.least + _pair_of_groups(r, ints, choice, c)])


@inlined
def _surely_moves(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> bool:
    """Whether call `c` waits for a reallocation, whichever options are chosen."""
    move = _chosen_move(r, ints, choice, c)
    if move == _UNKNOWN_MOVE:
        return bool(reals[r.moved + _pair_of_groups(r, ints, choice, c)] > 0.0)
    return bool(move >= 0)


@inlined
def fill_seconds(r: Relaxation, ints: Ints, reals: Floats, moves: Floats, choice: Ints) -> bool:
    """Fewest seconds of every task; false where a call cannot have what the choice says."""
    most = 0.0
    for c in range(r.num_calls):
        reals[r.task_seconds + c] = least_seconds(r, ints, reals, choice, c)
        most = max(most, reals[r.task_seconds + c])
    for t in range(r.num_calls, r.num_tasks):
        c = ints[r.mover + t]
        reals[r.task_seconds + t] = move_seconds(r, ints, reals, moves, choice, c)
        most = max(most, reals[r.task_seconds + t])
    return most < np.inf


@inlined
def fill_clashes(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Fewest devices of every task, and which tasks it cannot run together with."""
    for c in range(r.num_calls):
        ints[r.task_devices + c] = ints[r.call_devices + c]
        ints[r.task_clash + c] = 0
    for c in range(r.num_calls):
        for d in range(c):
            if _must_meet(r, ints, c, d) or _is_one_mesh(r, ints, choice, c, d):
                ints[r.task_clash + c] |= 1 << d
                ints[r.task_clash + d] |= 1 << c
    for t in range(r.num_calls, r.num_tasks):
        c = ints[r.mover + t]
        owner = ints[r.train + c]
        ints[r.task_devices + t] = max(ints[r.task_devices + c], ints[r.task_devices + owner])
        ints[r.task_clash + t] = ints[r.task_clash + c] | ints[r.task_clash + owner]
    if r.has_windows:
        _put_training_first(r, ints, reals, choice)


@inlined
def _is_one_mesh(r: Relaxation, ints: Ints, choice: Ints, c: int, d: int) -> bool:
    """Whether two calls are where their train call is."""
    t = ints[r.train + c]
    if t < 0 or t != ints[r.train + d]:
        return False
    c_is_there = t == c or follows(r, ints, choice, c)
    return c_is_there and (t == d or follows(r, ints, choice, d))


@inlined
def _must_meet(r: Relaxation, ints: Ints, c: int, d: int) -> bool:
    """Whether two calls share a device, whichever options of their sets they take."""
    if ints[r.call_devices + c] + ints[r.call_devices + d] > r.num_devices:
        return True
    first = max(ints[r.call_core_first + c], ints[r.call_core_first + d])
    if first < min(ints[r.call_core_last + c], ints[r.call_core_last + d]):
        return True
    return _is_crowded(r, ints, c, d) or _is_crowded(r, ints, d, c)


@inlined
def _is_crowded(r: Relaxation, ints: Ints, c: int, d: int) -> bool:
    """Whether the devices that `c` surely has leave `d` no room on either side."""
    first = ints[r.call_core_first + c]
    last = ints[r.call_core_last + c]
    room = max(first - ints[r.call_hull_first + d], ints[r.call_hull_last + d] - last)
    return bool(first < last and room < ints[r.call_devices + d])


@inlined
def _put_training_first(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Train calls exclude what they meet in their window, and all that follows it.

    All train calls of a window are committed before any of its other work, so that work waits
    for every train call with which it shares a device.
    """
    for t in range(r.num_calls):
        if ints[r.train + t] != t:
            continue
        meets = ints[r.task_clash + t]
        for c in range(r.num_calls):
            owner = ints[r.train + c]
            if owner == c:
                continue
            waits = (meets >> c) & 1
            if owner >= 0 and _surely_moves(r, ints, reals, choice, c):
                waits |= (meets >> owner) & 1
                if waits and ints[r.move_task + c] >= 0:
                    ints[r.task_clash + t] |= ints[r.later + ints[r.move_task + c]]
            if waits:
                ints[r.task_clash + t] |= ints[r.later + c]
