"""Lower bounds on the seconds of all plans that choose from given sets of options.

Where the graph has windows (`realloc.search.windows`), a window's work is relaxed: its tasks
(the calls, and one reallocation per trained model) may be cut into pieces, which run together
wherever precedence does not order the tasks and their devices suffice. One rule of the
simulator is kept: train calls come first, so other work that must meet one on a device is
behind it. The shortest such schedule is a linear program over sets of tasks that may run
together; its dual gives each task a weight, such that no set weighs more than 1, and
Σ weight × seconds is the bound. It is at least the longest path, the work of any device, and
the area (devices × seconds) over all devices. Weights stay valid when sets of options shrink,
because fewer tasks fit together then: a parent's weights bound its children for next to
nothing. And whatever the solver returns is scaled until no set weighs more than 1, so its
rounding errors cannot make a bound too high.

Elsewhere (staleness, calls that wait for nothing, ...) the whole simulation is relaxed. Its
first iteration ends with some call x without successors, so all that waits for x's first run
comes after end_1: the longest path from there to the end, and the area of all that work over
all devices, bound (end_K − end_1). The smallest of these over all such x holds in any case.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled, inlined
from realloc.search.linear_program import solve
from realloc.search.relaxation import MAX_CALLS_WITH_MEMORY, Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@compiled
def choice_bound(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, weights: Floats) -> float:
    """No plan that chooses from the sets of `choice` takes fewer seconds (up to rounding).

    Args:
        choice: [C], a set of the option tree per call.
        weights: [T], filled with the tasks' weights, for `weighted_bound`; zeros where the
            graph has no windows.
    """
    _fill_mates(r, ints, reals, choice)
    if _overflows(r, ints, reals, choice) or _overflows_where_known(r, ints, choice):
        return np.inf
    _fill_seconds(r, ints, reals, choice)
    _fill_clashes(r, ints, reals, choice)
    if r.num_together == 0:
        return _unrolled_bound(r, ints, reals, choice)
    fitting = _fitting_sets(r, ints, reals)
    solve(r, ints, reals, fitting, weights)
    return _weigh(r, ints, reals, fitting, weights)


@compiled
def weighted_bound(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, weights: Floats
) -> float:
    """The bound by the weights of a choice that contains this one; cheaper and weaker."""
    _fill_seconds(r, ints, reals, choice)
    bound = 0.0
    for t in range(r.num_tasks):
        bound += weights[t] * reals[r.task_seconds + t]
    return bound


@inlined
def _fill_mates(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Of each call the earlier calls that may hold the same model in the same layout."""
    for c in range(r.num_calls):
        ints[r.mates + c] = 0
        for d in range(c):
            if ints[r.model + d] == ints[r.model + c] and _may_share(r, ints, reals, choice, c, d):
                ints[r.mates + c] |= 1 << d


@inlined
def _may_share(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int, d: int) -> bool:
    """Whether two calls of one model may have one layout; equal layouts have equal devices."""
    a = choice[c]
    b = choice[d]
    if not (ints[r.has_layout + a] and ints[r.has_layout + b]):
        return False
    if ints[r.option + a] >= 0 and ints[r.option + b] >= 0:
        return bool(ints[r.layout + ints[r.option + a]] == ints[r.layout + ints[r.option + b]])
    if (
        ints[r.hull_first + a] >= ints[r.hull_last + b]
        or ints[r.hull_first + b] >= ints[r.hull_last + a]
    ):
        return False
    train = ints[r.train + c]
    if train != c and train != d:
        return True
    other = d if train == c else c
    at = ints[r.least_start + other]
    at += ints[r.group + choice[train]] * ints[r.least_columns + other]
    return bool(reals[r.apart + at + ints[r.group + choice[other]]] == 0.0)


@inlined
def _added_bytes(r: Relaxation, ints: Ints, choice: Ints, c: int, others: int) -> int:
    """Resident bytes that a call adds to those of other calls on a device, at least.

    Calls of one layout hold the largest figure among them, once. Taken in the order of their
    positions, each adds at most its excess over those before it; counting the excess over all
    that may share its layout never counts more.
    """
    held = 0
    mates = ints[r.mates + c] & others
    if mates:
        for d in range(c):
            if (mates >> d) & 1:
                held = max(held, ints[r.resident + choice[d]])
    return int(max(0, ints[r.resident + choice[c]] - held))


@inlined
def _overflows(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> bool:
    """Some calls that must meet on a device need more memory than it has.

    Calls that leave out fewer devices, all together, than there are, have one in common.
    """
    if r.num_calls > MAX_CALLS_WITH_MEMORY:
        return False
    ints[r.left_out] = 0
    ints[r.held] = 0
    ints[r.largest] = 0
    for c in range(r.num_calls):
        bit = 1 << c
        left_out = r.num_devices - ints[r.num_devices_of + choice[c]]
        active = ints[r.active + choice[c]]
        for others in range(bit):
            chosen = others | bit
            out = ints[r.left_out + others] + left_out
            ints[r.left_out + chosen] = out
            if out >= r.num_devices:
                continue
            held = ints[r.held + others] + _added_bytes(r, ints, choice, c, others)
            most = max(ints[r.largest + others], active)
            ints[r.held + chosen] = held
            ints[r.largest + chosen] = most
            if held + most > r.device_memory_bytes:
                return True
    return False


@inlined
def _overflows_where_known(r: Relaxation, ints: Ints, choice: Ints) -> bool:
    """The calls whose options all have a certain device in common do not fit it."""
    for c in range(r.num_calls):
        device = ints[r.core_first + choice[c]]
        if device >= ints[r.core_last + choice[c]]:
            continue
        present = 0
        for d in range(r.num_calls):
            first = ints[r.core_first + choice[d]]
            present |= int(first <= device < ints[r.core_last + choice[d]]) << d
        held = 0
        active = 0
        for d in range(r.num_calls):
            if (present >> d) & 1:
                held += _added_bytes(r, ints, choice, d, present)
                active = max(active, ints[r.active + choice[d]])
        if held + active > r.device_memory_bytes:
            return True
    return False


@inlined
def _move_seconds(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> float:
    """Fewest seconds of the reallocation before call `c`."""
    t = ints[r.train + c]
    one = ints[r.option + choice[t]]
    two = ints[r.option + choice[c]]
    if one >= 0 and two >= 0:
        source = ints[r.layout + one]
        target = ints[r.layout + two]
        if source < 0 or target < 0 or source == target:
            return 0.0
        at = ints[r.matrix_start + c] + source * ints[r.matrix_size + c] + target
        return float(reals[r.matrix + at])
    at = ints[r.least_start + c] + ints[r.group + choice[t]] * ints[r.least_columns + c]
    return float(reals[r.least + at + ints[r.group + choice[c]]])


@inlined
def _fill_seconds(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Fewest seconds of every task."""
    for c in range(r.num_calls):
        reals[r.task_seconds + c] = reals[r.seconds + choice[c]]
    for t in range(r.num_calls, r.num_tasks):
        c = ints[r.mover + t]
        reals[r.task_seconds + t] = _move_seconds(r, ints, reals, choice, c)


@inlined
def _fill_clashes(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Fewest devices of every task, and which tasks it cannot run together with."""
    for c in range(r.num_calls):
        ints[r.task_devices + c] = ints[r.num_devices_of + choice[c]]
        ints[r.task_clash + c] = 0
    for c in range(r.num_calls):
        for d in range(c):
            if _must_meet(r, ints, choice[c], choice[d]):
                ints[r.task_clash + c] |= 1 << d
                ints[r.task_clash + d] |= 1 << c
    for t in range(r.num_calls, r.num_tasks):
        c = ints[r.mover + t]
        owner = ints[r.train + c]
        ints[r.task_devices + t] = max(ints[r.task_devices + c], ints[r.task_devices + owner])
        ints[r.task_clash + t] = ints[r.task_clash + c] | ints[r.task_clash + owner]
    if r.num_together > 0:
        _put_training_first(r, ints, reals, choice)


@inlined
def _must_meet(r: Relaxation, ints: Ints, a: int, b: int) -> bool:
    """Whether any option of one set shares a device with any of another."""
    if ints[r.num_devices_of + a] + ints[r.num_devices_of + b] > r.num_devices:
        return True
    first = max(ints[r.core_first + a], ints[r.core_first + b])
    if first < min(ints[r.core_last + a], ints[r.core_last + b]):
        return True
    return _is_crowded(r, ints, a, b) or _is_crowded(r, ints, b, a)


@inlined
def _is_crowded(r: Relaxation, ints: Ints, a: int, b: int) -> bool:
    """Whether the devices that all of `a` has leave none of `b` room on either side."""
    first = ints[r.core_first + a]
    last = ints[r.core_last + a]
    room = max(first - ints[r.hull_first + b], ints[r.hull_last + b] - last)
    return bool(first < last and room < ints[r.num_devices_of + b])


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


@inlined
def _surely_moves(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> bool:
    """Whether call `c` waits for a reallocation, whichever options are chosen."""
    train = ints[r.train + c]
    one = ints[r.option + choice[train]]
    two = ints[r.option + choice[c]]
    if one >= 0 and two >= 0:
        source = ints[r.layout + one]
        target = ints[r.layout + two]
        return bool(source >= 0 and target >= 0 and source != target)
    at = ints[r.least_start + c] + ints[r.group + choice[train]] * ints[r.least_columns + c]
    return bool(reals[r.moved + at + ints[r.group + choice[c]]] > 0.0)


@inlined
def _fitting_sets(r: Relaxation, ints: Ints, reals: Floats) -> int:
    """Maximal sets of tasks that precedence and devices allow to run together.

    Tasks of no seconds are left out.

    Returns:
        How many there are in `fitting`.
    """
    worth = 0
    for t in range(r.num_tasks):
        worth |= int(reals[r.task_seconds + t] > 0.0) << t
    for i in range(r.num_together):
        chosen = ints[r.together + i]
        before = ints[r.without_last + i]
        last = 0
        while chosen >> (last + 1):
            last += 1
        devices = ints[r.task_devices + last]
        clash = ints[r.task_clash + last]
        fits = (worth >> last) & 1
        if before >= 0:
            fits &= int(ints[r.set_devices + before] >= 0)
            devices += ints[r.set_devices + before]
            clash |= ints[r.set_clash + before]
        fits &= int(devices <= r.num_devices) & int((clash & chosen) == 0)
        ints[r.set_devices + i] = devices if fits else -1
        ints[r.set_clash + i] = clash
    found = 0
    for k in range(r.num_together):
        i = ints[r.by_size + k]
        if ints[r.set_devices + i] < 0:
            continue
        chosen = ints[r.together + i]
        covered = False
        for j in range(found):
            if ints[r.fitting + j] & chosen == chosen:
                covered = True
                break
        if not covered:
            ints[r.fitting + found] = chosen
            found += 1
    return found


@inlined
def _weigh(r: Relaxation, ints: Ints, reals: Floats, fitting: int, weights: Floats) -> float:
    """Scale the weights until no fitting set is above 1; their bound."""
    heaviest = 1.0
    for i in range(fitting):
        chosen = ints[r.fitting + i]
        weight = 0.0
        for t in range(r.num_tasks):
            weight += weights[t] * float((chosen >> t) & 1)
        heaviest = max(heaviest, weight)
    bound = 0.0
    for t in range(r.num_tasks):
        # A task of no seconds was left out of the sets: its weight must not count later on.
        weights[t] = weights[t] / heaviest if reals[r.task_seconds + t] > 0.0 else 0.0
        bound += weights[t] * reals[r.task_seconds + t]
    return bound


@inlined
def _unrolled_bound(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> float:
    """The bound without windows: paths and area behind the end of the first iteration."""
    least = np.inf
    for x in range(r.num_ends):
        area = 0.0
        for c in range(r.num_calls):
            area += ints[r.behind + x * r.num_calls + c] * reals[r.area + choice[c]]
        here = max(area / r.num_devices, _path_behind(r, ints, reals, choice, ints[r.ends + x]))
        least = min(least, here)
    return least / float(r.iterations - 1)


@inlined
def _path_behind(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, end: int) -> float:
    """The longest path from the end of a call's first run to the end of any call."""
    longest = 0.0
    for i in range(r.iterations):
        for k in range(r.num_calls):
            c = ints[r.order + k]
            at = r.distance + i * r.num_calls
            begin = -1.0
            for j in range(ints[r.before_start + c], ints[r.before_start + c + 1]):
                begin = max(begin, reals[at + ints[r.before + j]])
            if i > 0:
                begin = max(begin, reals[at - r.num_calls + c])
            t = ints[r.train + c]
            if t >= 0 and t != c and i >= r.lag:
                version = reals[at - r.lag * r.num_calls + t]
                if version >= 0.0:
                    begin = max(begin, version + _move_seconds(r, ints, reals, choice, c))
            distance = begin + reals[r.seconds + choice[c]] if begin >= 0.0 else -1.0
            if i == 0:
                distance = 0.0 if c == end else -1.0
            reals[at + c] = distance
            longest = max(longest, distance)
    return longest
