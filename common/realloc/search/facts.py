"""What is known of each call of a choice, whichever options it takes.

A call of a trained model that *follows* has the layout of its model's train call, so it has
what the train call's set implies: its devices, and the fewest seconds in any of its layouts.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def follows(r: Relaxation, ints: Ints, choice: Ints, c: int) -> bool:
    """Whether a call is to have its train call's layout, whichever that will be."""
    return bool(choice[c] == ints[r.follow + c])


@inlined
def may_follow(r: Relaxation, ints: Ints, choice: Ints, c: int) -> bool:
    """Whether a call may have its train call's layout; once it is refined, it surely has or not."""
    at_root = choice[c] == ints[r.root + c]
    return bool(ints[r.follow + c] >= 0 and (at_root or choice[c] == ints[r.follow + c]))


@inlined
def least_seconds(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> float:
    """Fewest seconds of a call."""
    if not follows(r, ints, choice, c):
        return float(reals[r.seconds + choice[c]])
    t = ints[r.train + c]
    return float(reals[r.follow_seconds + ints[r.follow_start + c] + choice[t] - ints[r.root + t]])


@inlined
def most_seconds(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> float:
    """Most seconds of a call."""
    if not follows(r, ints, choice, c):
        return float(reals[r.slowest + choice[c]])
    t = ints[r.train + c]
    return float(reals[r.follow_slowest + ints[r.follow_start + c] + choice[t] - ints[r.root + t]])


@inlined
def fill_facts(r: Relaxation, ints: Ints, reals: Floats, choice: Ints) -> None:
    """Devices and bytes of every call; what a call that follows adds to memory is counted 0."""
    for c in range(r.num_calls):
        v = choice[c]
        ints[r.call_resident + c] = ints[r.resident + v]
        ints[r.call_active + c] = ints[r.active + v]
        if follows(r, ints, choice, c):
            t = ints[r.train + c]
            v = choice[t]
            ints[r.call_resident + c] = 0
            at = ints[r.follow_start + c] + v - ints[r.root + t]
            ints[r.call_active + c] = ints[r.follow_active + at]
        ints[r.call_devices + c] = ints[r.num_devices_of + v]
        ints[r.call_core_first + c] = ints[r.core_first + v]
        ints[r.call_core_last + c] = ints[r.core_last + v]
        ints[r.call_hull_first + c] = ints[r.hull_first + v]
        ints[r.call_hull_last + c] = ints[r.hull_last + v]


@inlined
def least_area(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, c: int) -> float:
    """Fewest devices × seconds of a call."""
    if not follows(r, ints, choice, c):
        return float(reals[r.area + choice[c]])
    return float(ints[r.call_devices + c] * least_seconds(r, ints, reals, choice, c))
