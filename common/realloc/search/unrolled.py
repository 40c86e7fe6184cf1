"""The bound of a graph without windows: what comes behind the end of the first iteration."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.clashes import move_seconds
from realloc.search.compilation import inlined
from realloc.search.facts import least_area
from realloc.search.linear_program import fitting_sets, heaviest, solve
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def unrolled_bound(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> float:
    """The least over the calls that may end the first iteration, of what comes behind them."""
    rows = fitting_sets(r, ints, reals)
    least = np.inf
    for x in range(r.num_ends):
        area = 0.0
        for c in range(r.num_calls):
            runs = ints[r.behind + x * r.num_calls + c]
            area += runs * least_area(r, ints, reals, choice, c)
            reals[r.worth + c] = runs * reals[r.task_seconds + c]
        here = max(area / r.num_devices, _path_behind(r, ints, reals, choice, ints[r.ends + x]))
        least = min(least, max(here, _least_time(r, ints, reals, rows)))
    return least / float(r.iterations - 1)


@inlined
def _least_time(r: Relaxation, ints: Ints, reals: Floats, rows: int) -> float:
    """The shortest way to do the work of all runs, in pieces, by sets of calls whose devices
    suffice; 0 where the graph has too many sets."""
    if rows == 0:
        return 0.0
    solve(r, ints, reals, r.fitting, rows, r.worth, r.num_calls)
    time = 0.0
    for c in range(r.num_calls):
        time += reals[r.solution + c] * reals[r.worth + c]
    return time / heaviest(ints, reals, r.fitting, rows, r.solution, r.num_calls)


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
                    begin = max(begin, version + move_seconds(r, ints, reals, choice, c))
            distance = begin + reals[r.task_seconds + c] if begin >= 0.0 else -1.0
            if i == 0:
                distance = 0.0 if c == end else -1.0
            reals[at + c] = distance
            longest = max(longest, distance)
    return longest
