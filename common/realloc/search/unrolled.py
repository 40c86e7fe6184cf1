"""The bound of a graph without windows: what comes behind the end of the first iteration."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.clashes import move_seconds
from realloc.search.compilation import inlined
from realloc.search.facts import least_area, most_seconds
from realloc.search.linear_program import fitting_sets, heaviest, solve
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def unrolled_bound(
    r: Relaxation, ints: Ints, reals: Floats, moves: Floats, choice: Ints, weights: Floats
) -> float:
    """The least over the calls that may end the first iteration, of what comes behind them.

    Fills `weights` with those of the calls there, which say what to refine.
    """
    rows = fitting_sets(r, ints, reals)
    least = np.inf
    for x in range(r.num_ends):
        area = 0.0
        for c in range(r.num_calls):
            runs = ints[r.behind + x * r.num_calls + c]
            area += runs * least_area(r, ints, reals, choice, c)
            reals[r.worth + c] = runs * reals[r.task_seconds + c]
        here = max(
            area / r.num_devices, _path_behind(r, ints, reals, moves, choice, ints[r.ends + x])
        )
        here = max(here, _least_time(r, ints, reals, rows))
        if here < least and rows > 0:
            for c in range(r.num_calls):
                weights[c] = reals[r.solution + c] * ints[r.behind + x * r.num_calls + c]
        if r.train_together and rows > 0:
            for y in range(r.num_ends):
                if y != x and here < least:
                    here = max(here, _time_behind_either(r, ints, reals, choice, rows, x, y))
        least = min(least, here)
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
def _time_behind_either(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, rows: int, x: int, y: int
) -> float:
    """Least time behind end_1, the end of `x`'s first run, by all that waits for it or `y`'s."""
    alone = 1 << ints[r.ends + x]
    least = _time_after_delays(r, ints, reals, choice, rows, x, y, alone)
    undelayed = least
    head_start = reals[r.task_seconds + ints[r.ends + y]]
    for i in range(r.num_delays):
        delays = _delays(r, ints, x, y, ints[r.delays + i])
        later = -head_start
        for c in range(r.num_calls):
            if ((delays & ~alone) >> c) & 1:
                later += most_seconds(r, ints, reals, choice, c)
        if later > 0.0:
            here = _time_after_delays(r, ints, reals, choice, rows, x, y, delays)
            least = min(least, max(here, undelayed - later))
    return least


@inlined
def _time_after_delays(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, rows: int, x: int, y: int, delays: int
) -> float:
    """What waits for `y`'s first run may have begun before end_1, but only while a call of
    `delays` ran: their seconds, less what their weights count, are taken off."""
    either = r.behind_either + (x * r.num_ends + y) * r.num_calls
    for c in range(r.num_calls):
        runs = ints[either + c] + ((delays >> c) & 1)
        reals[r.worth + c] = runs * reals[r.task_seconds + c]
    solve(r, ints, reals, r.fitting, rows, r.worth, r.num_calls)
    most = heaviest(ints, reals, r.fitting, rows, r.solution, r.num_calls)
    time = 0.0
    for c in range(r.num_calls):
        off = (delays >> c) & 1
        seconds = reals[r.task_seconds + c]
        weight = reals[r.solution + c] / most if seconds > 0.0 else 0.0
        counts = weight * (ints[either + c] + off) - off
        if counts < 0.0:  # the slower the option, the less is left
            seconds = most_seconds(r, ints, reals, choice, c)
        if counts != 0.0:
            time += counts * seconds
    return time


@inlined
def _delays(r: Relaxation, ints: Ints, x: int, y: int, others: int) -> int:
    """Bit set of `x` and all that may hold it up, one behind the other, on devices they share:
    trains that come before it, and the given other calls."""
    chain = 1 << ints[r.ends + x]
    for z in range(r.num_ends):
        others |= int(z != y and ints[r.ends + z] < ints[r.ends + x]) << ints[r.ends + z]
    for _ in range(r.num_calls):
        for c in range(r.num_calls):
            if ((others & ~chain) >> c) & 1:
                for d in range(r.num_calls):
                    if (chain >> d) & 1 and _may_meet(r, ints, c, d):
                        chain |= 1 << c
    return int(chain)


@inlined
def _may_meet(r: Relaxation, ints: Ints, c: int, d: int) -> bool:
    """Whether two calls may share a device."""
    return bool(
        ints[r.call_hull_first + c] < ints[r.call_hull_last + d]
        and ints[r.call_hull_first + d] < ints[r.call_hull_last + c]
    )


@inlined
def _path_behind(
    r: Relaxation, ints: Ints, reals: Floats, moves: Floats, choice: Ints, end: int
) -> float:
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
                    begin = max(begin, version + move_seconds(r, ints, reals, moves, choice, c))
            distance = begin + reals[r.task_seconds + c] if begin >= 0.0 else -1.0
            if i == 0:
                distance = 0.0 if c == end else -1.0
            reals[at + c] = distance
            longest = max(longest, distance)
    return longest
