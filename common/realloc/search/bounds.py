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
    if _overflows(r, ints, reals, choice):
        return np.inf
    _fill_tasks(r, ints, reals, choice)
    if r.num_together == 0:
        return _unrolled_bound(r, ints, reals, choice)
    fitting = _fitting_sets(r, ints, reals)
    _solve(r, ints, reals, fitting, weights)
    return _weigh(r, ints, reals, fitting, weights)


@compiled
def weighted_bound(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, weights: Floats
) -> float:
    """The bound by the weights of a choice that contains this one; cheaper and weaker."""
    _fill_tasks(r, ints, reals, choice)
    bound = 0.0
    for t in range(r.num_tasks):
        bound += weights[t] * reals[r.task_seconds + t]
    return bound


@inlined
def _overflows(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> bool:
    """Some calls that must meet on a device need more memory than it has.

    Calls that leave out fewer devices, all together, than there are, have one in common. Two
    calls of one trained model hold its weights once where their layouts may be equal.
    """
    if r.num_calls > MAX_CALLS_WITH_MEMORY:
        return False
    ints[r.left_out] = 0
    ints[r.held] = 0
    ints[r.largest] = 0
    for c in range(r.num_calls):
        bit = 1 << c
        node = choice[c]
        left_out = r.num_devices - ints[r.num_devices_of + node]
        active = ints[r.active + node]
        resident = ints[r.resident + node]
        partner = ints[r.partner + c]
        shared = 0
        if partner == -2:
            resident = 0
        elif 0 <= partner < c and not _are_apart(r, ints, reals, choice, c, partner):
            shared = min(resident, ints[r.resident + choice[partner]])
        for others in range(bit):
            chosen = others | bit
            out = ints[r.left_out + others] + left_out
            ints[r.left_out + chosen] = out
            if out >= r.num_devices:
                continue
            held = ints[r.held + others] + resident
            if shared > 0 and (others >> partner) & 1:
                held -= shared
            most = max(ints[r.largest + others], active)
            ints[r.held + chosen] = held
            ints[r.largest + chosen] = most
            if held + most > r.device_memory_bytes:
                return True
    return False


@inlined
def _are_apart(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, one: int, two: int) -> bool:
    """Whether the options of a train call and its partner have no layout in common."""
    train = ints[r.train + one]
    other = two if train == one else one
    first = ints[r.option + choice[train]]
    second = ints[r.option + choice[other]]
    if first >= 0 and second >= 0:
        layout = ints[r.layout + first]
        return bool(layout < 0 or layout != ints[r.layout + second])
    at = (
        ints[r.least_start + other] + ints[r.coarse + choice[train]] * ints[r.least_columns + other]
    )
    return bool(reals[r.apart + at + ints[r.coarse + choice[other]]] > 0.0)


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
    at = ints[r.least_start + c] + ints[r.coarse + choice[t]] * ints[r.least_columns + c]
    return float(reals[r.least + at + ints[r.coarse + choice[c]]])


@inlined
def _fill_tasks(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Fewest seconds of every task."""
    for c in range(r.num_calls):
        reals[r.task_seconds + c] = reals[r.seconds + choice[c]]
    for t in range(r.num_calls, r.num_tasks):
        c = ints[r.mover + t]
        reals[r.task_seconds + t] = _move_seconds(r, ints, reals, choice, c)
    for c in range(r.num_calls):
        ints[r.task_devices + c] = ints[r.num_devices_of + choice[c]]
        ints[r.task_clash + c] = 0
    for c in range(r.num_calls):
        for d in range(c):
            if _must_meet(r, ints, choice, c, d):
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
def _must_meet(r: Relaxation, ints: Ints, choice: Ints, c: int, d: int) -> bool:
    """Whether any two options of two calls share a device, as far as is known."""
    if ints[r.task_devices + c] + ints[r.task_devices + d] > r.num_devices:
        return True
    one = ints[r.option + choice[c]]
    two = ints[r.option + choice[d]]
    if one < 0 or two < 0:
        return False
    return bool(
        ints[r.first + one] < ints[r.last + two] and ints[r.first + two] < ints[r.last + one]
    )


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
    at = ints[r.least_start + c] + ints[r.coarse + choice[train]] * ints[r.least_columns + c]
    return bool(reals[r.moved + at + ints[r.coarse + choice[c]]] > 0.0)


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
    found = 0
    for i in range(r.num_together):
        chosen = ints[r.together + i] & worth
        devices = 0
        clash = 0
        for t in range(r.num_tasks):
            if (chosen >> t) & 1:
                devices += ints[r.task_devices + t]
                clash |= ints[r.task_clash + t]
        if chosen == 0 or devices > r.num_devices or (clash & chosen) != 0:
            continue
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
def _solve(r: Relaxation, ints: Ints, reals: Floats, rows: int, weights: Floats) -> None:
    """Maximise Σ weight × seconds with no fitting set above 1: the simplex method.

    The tableau holds nonbasic columns only. Any tableau on the way is a feasible answer, so
    the method may stop early.
    """
    columns = r.num_tasks
    width = columns + 1
    tableau = r.tableau
    for i in range(rows):
        chosen = ints[r.fitting + i]
        for t in range(columns):
            reals[tableau + i * width + t] = float((chosen >> t) & 1)
        reals[tableau + i * width + columns] = 1.0
        ints[r.row_label + i] = columns + i
    objective = tableau + rows * width
    for t in range(columns):
        reals[objective + t] = -reals[r.task_seconds + t]
        ints[r.column_label + t] = t
    reals[objective + columns] = 0.0
    for _ in range(6 * columns + 10):
        pivot_column = 0
        for t in range(1, columns):
            if reals[objective + t] < reals[objective + pivot_column]:
                pivot_column = t
        scale = abs(reals[objective + columns]) + 1e-300
        if reals[objective + pivot_column] >= -1e-12 * scale:
            break
        pivot_row = -1
        least = np.inf
        for i in range(rows):
            entry = reals[tableau + i * width + pivot_column]
            if entry > 1e-9:
                ratio = reals[tableau + i * width + columns] / entry
                if ratio < least:
                    least = ratio
                    pivot_row = i
        if pivot_row < 0:
            break
        _pivot(reals, tableau, rows, width, pivot_row, pivot_column)
        label = ints[r.row_label + pivot_row]
        ints[r.row_label + pivot_row] = ints[r.column_label + pivot_column]
        ints[r.column_label + pivot_column] = label
    for t in range(columns):
        weights[t] = 0.0
    for i in range(rows):
        if ints[r.row_label + i] < columns:
            value = reals[tableau + i * width + columns]
            weights[ints[r.row_label + i]] = max(0.0, value)


@inlined
def _pivot(reals: Floats, tableau: int, rows: int, width: int, row: int, column: int) -> None:
    """Exchange a basic and a nonbasic variable."""
    at = tableau + row * width
    inverse = 1.0 / reals[at + column]
    for j in range(width):
        reals[at + j] *= inverse
    for i in range(rows + 1):
        if i != row:
            line = tableau + i * width
            factor = reals[line + column]
            if factor != 0.0:
                for j in range(width):
                    reals[line + j] -= factor * reals[at + j]
                reals[line + column] = -factor * inverse
    reals[at + column] = inverse


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
