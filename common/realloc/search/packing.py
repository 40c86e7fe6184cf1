"""Choices whose calls fit together on any one device, and yet not all on the cluster.

Each device holds a set of calls that fits its memory. If weights of the calls can be found of
which no set that fits exceeds 1, then Σ weight × devices is at most the number of devices in
every plan. So the largest such sum, a linear program, shows that some choices have no plan: calls
that exclude each other need devices of their own, and there are not enough.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.linear_program import heaviest, solve
from realloc.search.relaxation import MAX_CALLS_WITH_MEMORY, Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SURELY = 1.0 + 1e-9


@inlined
def packs_too_much(r: Relaxation, ints: Ints, reals: Floats) -> bool:
    """Whether the calls need more devices than there are; after `overflows`."""
    everything = (1 << r.num_calls) - 1
    if r.num_calls > MAX_CALLS_WITH_MEMORY or ints[r.held + everything] >= 0:
        return False
    rows = _fitting_calls(r, ints)
    if rows > r.most_packed:
        return False
    for c in range(r.num_calls):
        reals[r.worth + c] = float(ints[r.call_devices + c])
    solve(r, ints, reals, r.packed, rows, r.worth, r.num_calls)
    needed = 0.0
    for c in range(r.num_calls):
        needed += reals[r.solution + c] * reals[r.worth + c]
    most = heaviest(ints, reals, r.packed, rows, r.solution, r.num_calls)
    return bool(needed / most > r.num_devices * _SURELY)


@inlined
def _fitting_calls(r: Relaxation, ints: Ints) -> int:
    """The maximal sets of calls that fit a device, to `packed`; returns how many there are."""
    found = 0
    for chosen in range(1, 1 << r.num_calls):
        if ints[r.held + chosen] < 0:
            continue
        is_maximal = True
        for c in range(r.num_calls):
            more = chosen | (1 << c)
            if more != chosen and ints[r.held + more] >= 0:
                is_maximal = False
                break
        if is_maximal:
            if found < r.most_packed:
                ints[r.packed + found] = chosen
            found += 1
    return found
