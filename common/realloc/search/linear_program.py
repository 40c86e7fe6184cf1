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
