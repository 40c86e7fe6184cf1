"""The linear programs behind a bound: weights of members, such that no set of them weighs more
than 1 and Σ weight × worth is largest. A simplex method on the flat arrays of a `Relaxation`.

Members are tasks, worth their seconds, in sets that can run together; or calls, worth their
devices, in sets that fit one device's memory (`realloc.search.packing`).
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def solve(
    r: Relaxation, ints: Ints, reals: Floats, sets: int, rows: int, worth: int, columns: int
) -> None:
    """Maximise Σ weight × worth; the weights go to `solution`.

    Any tableau on the way is a feasible answer, so the method may stop early.

    Args:
        sets: where the `rows` bit sets of members begin in the integers.
        worth: where the worths of the `columns` members begin in the reals.
    """
    _first_tableau(r, ints, reals, sets, rows, worth, columns)
    objective = r.tableau + rows * (columns + 1)
    for _ in range(6 * columns + 10):
        column = 0
        for t in range(1, columns):
            if reals[objective + t] < reals[objective + column]:
                column = t
        scale = abs(reals[objective + columns]) + 1e-300
        if reals[objective + column] >= -1e-12 * scale:
            break
        row = _tightest_row(r, reals, rows, columns, column)
        if row < 0:
            break
        _pivot(reals, r.tableau, rows, columns + 1, row, column)
        label = ints[r.row_label + row]
        ints[r.row_label + row] = ints[r.column_label + column]
        ints[r.column_label + column] = label
    for t in range(columns):
        reals[r.solution + t] = 0.0
    for i in range(rows):
        if ints[r.row_label + i] < columns:
            value = reals[r.tableau + i * (columns + 1) + columns]
            reals[r.solution + ints[r.row_label + i]] = max(0.0, value)


@inlined
def _first_tableau(
    r: Relaxation, ints: Ints, reals: Floats, sets: int, rows: int, worth: int, columns: int
) -> None:
    """All weights 0; the tableau holds nonbasic columns only."""
    for i in range(rows):
        chosen = ints[sets + i]
        at = r.tableau + i * (columns + 1)
        for t in range(columns):
            reals[at + t] = float((chosen >> t) & 1)
        reals[at + columns] = 1.0
        ints[r.row_label + i] = columns + i
    objective = r.tableau + rows * (columns + 1)
    for t in range(columns):
        reals[objective + t] = -reals[worth + t]
        ints[r.column_label + t] = t
    reals[objective + columns] = 0.0


@inlined
def _tightest_row(r: Relaxation, reals: Floats, rows: int, columns: int, column: int) -> int:
    """The set that a growing weight fills first; −1 where none does."""
    width = columns + 1
    found = -1
    least = np.inf
    for i in range(rows):
        entry = reals[r.tableau + i * width + column]
        if entry > 1e-9:
            ratio = reals[r.tableau + i * width + width - 1] / entry
            if ratio < least:
                least = ratio
                found = i
    return found


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
def fitting_sets(r: Relaxation, ints: Ints, reals: Floats) -> int:
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
def heaviest(ints: Ints, reals: Floats, sets: int, rows: int, solution: int, columns: int) -> float:
    """The weight of the heaviest set, at least 1: what to divide weights by that rounding made
    too large."""
    most = 1.0
    for i in range(rows):
        chosen = ints[sets + i]
        weight = 0.0
        for t in range(columns):
            weight += reals[solution + t] * float((chosen >> t) & 1)
        most = max(most, weight)
    return most


@inlined
def weigh(r: Relaxation, ints: Ints, reals: Floats, fitting: int, weights: Floats) -> float:
    """Weights of the tasks from their seconds; the bound that they give."""
    solve(r, ints, reals, r.fitting, fitting, r.task_seconds, r.num_tasks)
    most = heaviest(ints, reals, r.fitting, fitting, r.solution, r.num_tasks)
    bound = 0.0
    for t in range(r.num_tasks):
        # A task of no seconds was left out of the sets: its weight must not count later on.
        counts = reals[r.task_seconds + t] > 0.0
        weights[t] = reals[r.solution + t] / most if counts else 0.0
        bound += weights[t] * reals[r.task_seconds + t]
    return bound
