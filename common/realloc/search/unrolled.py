"""The bound of a graph without windows: paths and area behind the end of the first iteration."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.clashes import move_seconds
from realloc.search.compilation import inlined
from realloc.search.facts import least_area
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def unrolled_bound(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> float:
    """The bound without windows: paths and area behind the end of the first iteration."""
    least = np.inf
    for x in range(r.num_ends):
        area = 0.0
        for c in range(r.num_calls):
            area += ints[r.behind + x * r.num_calls + c] * least_area(r, ints, reals, choice, c)
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
                    begin = max(begin, version + move_seconds(r, ints, reals, choice, c))
            distance = begin + reals[r.task_seconds + c] if begin >= 0.0 else -1.0
            if i == 0:
                distance = 0.0 if c == end else -1.0
            reals[at + c] = distance
            longest = max(longest, distance)
    return longest
