"""The linear program behind a bound: weights of tasks, of which no set that can run together
weighs more than 1, such that Σ weight × seconds is largest. A simplex method on the flat arrays
of a `Relaxation`."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def solve(r: Relaxation, ints: Ints, reals: Floats, rows: int, weights: Floats) -> None:
    """Maximise Σ weight × seconds with none of the first `rows` fitting sets above 1.

    Any tableau on the way is a feasible answer, so the method may stop early.
    """
    columns = r.num_tasks
    _first_tableau(r, ints, reals, rows)
    objective = r.tableau + rows * (columns + 1)
    for _ in range(6 * columns + 10):
        column = 0
        for t in range(1, columns):
            if reals[objective + t] < reals[objective + column]:
                column = t
        scale = abs(reals[objective + columns]) + 1e-300
        if reals[objective + column] >= -1e-12 * scale:
            break
        row = _tightest_row(r, reals, rows, column)
        if row < 0:
            break
        _pivot(reals, r.tableau, rows, columns + 1, row, column)
        label = ints[r.row_label + row]
        ints[r.row_label + row] = ints[r.column_label + column]
        ints[r.column_label + column] = label
    for t in range(columns):
        weights[t] = 0.0
    for i in range(rows):
        if ints[r.row_label + i] < columns:
            value = reals[r.tableau + i * (columns + 1) + columns]
            weights[ints[r.row_label + i]] = max(0.0, value)


@inlined
def _first_tableau(r: Relaxation, ints: Ints, reals: Floats, rows: int) -> None:
    """All weights 0; the tableau holds nonbasic columns only."""
    columns = r.num_tasks
    for i in range(rows):
        chosen = ints[r.fitting + i]
        at = r.tableau + i * (columns + 1)
        for t in range(columns):
            reals[at + t] = float((chosen >> t) & 1)
        reals[at + columns] = 1.0
        ints[r.row_label + i] = columns + i
    objective = r.tableau + rows * (columns + 1)
    for t in range(columns):
        reals[objective + t] = -reals[r.task_seconds + t]
        ints[r.column_label + t] = t
    reals[objective + columns] = 0.0


@inlined
def _tightest_row(r: Relaxation, reals: Floats, rows: int, column: int) -> int:
    """The set that a growing weight fills first; −1 where none does."""
    width = r.num_tasks + 1
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
def weigh(r: Relaxation, ints: Ints, reals: Floats, fitting: int, weights: Floats) -> float:
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
