"""The simulator of `realloc.cost.simulator`, compiled: the same number, a thousand times faster.

A plan is an int64 array of option indices, one per call. Before it is simulated
(`realloc.search.event_list`), two bounds look whether it can be any good.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import bare, compiled, inlined
from realloc.search.event_list import run_events
from realloc.search.space import Space

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MARGIN = 1e-9
"""Relative slack by which a bound must exceed a threshold before it prunes: bounds add in
another order than the simulator, so they are exact only up to rounding."""


@compiled
def evaluate(
    s: Space, ints: Ints, reals: Floats, moves: Floats, plan: Ints, cutoff: float
) -> float:
    """Seconds per iteration of a plan, exactly.

    Returns:
        The seconds; infinity where the plan does not fit the memory; or, where the exact
        seconds are known to be at least `cutoff`, any number that is at least `cutoff`.
    """
    ints, reals, plan = bare(ints), bare(reals), bare(plan)
    _overlaps(s, ints, reals, plan)
    bound = _load_bound(s, ints, reals, plan)
    if bound == np.inf or bound > cutoff * (1.0 + MARGIN):
        return bound
    _gates(s, ints, reals, bare(moves), plan)
    bound = _path_bound(s, ints, reals)
    if bound > cutoff * (1.0 + MARGIN):
        return bound
    return run_events(s, ints, reals, cutoff)


@compiled
def evaluate_fully(s: Space, ints: Ints, reals: Floats, moves: Floats, plan: Ints) -> float:
    """Seconds per iteration of a plan, whether it fits the memory or not."""
    ints, reals, plan = bare(ints), bare(reals), bare(plan)
    _overlaps(s, ints, reals, plan)
    _gates(s, ints, reals, bare(moves), plan)
    return run_events(s, ints, reals, np.inf)


@compiled
def plan_peak_bytes(s: Space, ints: Ints, reals: Floats, moves: Floats, plan: Ints) -> int:
    """The largest peak over the devices.

    The calls on a device are all on the first device of the one that starts last, so the
    first devices of the calls suffice.
    """
    ints, reals, plan = bare(ints), bare(reals), bare(plan)
    _keep_shared_layouts(s, ints, reals, plan)
    peak = 0
    for c in range(s.num_calls):
        device = ints[s.first + plan[c]]
        resident = 0
        active = 0
        for d in range(s.num_calls):
            o = plan[d]
            if ints[s.first + o] <= device < ints[s.last + o]:
                resident += ints[s.kept + d]
                active = max(active, ints[s.active + o])
        peak = max(peak, resident + active)
    return peak


@inlined
def _overlaps(s: Space, ints: Ints, reals: Floats, plan: Ints) -> None:
    """Which calls share a device with which; every call does with itself."""
    for c in range(s.num_calls):
        ints[s.overlap + c] = 1 << c
    for c in range(1, s.num_calls):
        first = ints[s.first + plan[c]]
        last = ints[s.last + plan[c]]
        mask = ints[s.overlap + c]
        for d in range(c):
            shared = int((ints[s.first + plan[d]] < last) & (first < ints[s.last + plan[d]]))
            mask |= shared << d
            ints[s.overlap + d] |= shared << c
        ints[s.overlap + c] = mask


@inlined
def _keep_shared_layouts(s: Space, ints: Ints, reals: Floats, plan: Ints) -> None:
    """Count the resident bytes of a shared (model, layout) at the call with the most."""
    for c in range(s.num_calls):
        kept = ints[s.resident + plan[c]]
        layout = ints[s.layout + plan[c]]
        if layout >= 0:
            for d in range(s.num_calls):
                if (
                    d != c
                    and ints[s.model + d] == ints[s.model + c]
                    and ints[s.layout + plan[d]] == layout
                ):
                    other = ints[s.resident + plan[d]]
                    if other > kept or (other == kept and d < c):
                        kept = 0
                        break
        ints[s.kept + c] = kept


@inlined
def _load_bound(s: Space, ints: Ints, reals: Floats, plan: Ints) -> float:
    """Infinity where a device's memory overflows, else the busiest device's seconds.

    All work of a window is done one after the other on a device, so the seconds bound the
    plan's; they are 0 where the graph has no windows.
    """
    _keep_shared_layouts(s, ints, reals, plan)
    windows = s.num_window > 0
    busiest = 0.0
    for c in range(s.num_calls):
        device = ints[s.first + plan[c]]
        resident = 0
        active = 0
        busy = 0.0
        mask = ints[s.overlap + c]
        for d in range(s.num_calls):
            o = plan[d]
            if (mask >> d) & 1 and ints[s.first + o] <= device:
                resident += ints[s.kept + d]
                active = max(active, ints[s.active + o])
                busy += reals[s.seconds + o]
        if resident + active > s.device_memory_bytes:
            return np.inf
        busiest = max(busiest, busy)
    return busiest if windows else 0.0


@inlined
def _gates(s: Space, ints: Ints, reals: Floats, moves: Floats, plan: Ints) -> None:
    """Seconds of the slots, and the reallocation that each call waits for."""
    for c in range(s.num_calls):
        o = plan[c]
        reals[s.slot_seconds + ints[s.call_slot + c]] = reals[s.seconds + o]
        ints[s.gate + c] = -1
        slot = ints[s.move_slot + c]
        if slot < 0:
            continue
        reals[s.slot_seconds + slot] = 0.0
        source = ints[s.layout + plan[ints[s.train + c]]]
        target = ints[s.layout + o]
        if source < 0 or target < 0 or source == target:
            continue
        gate = slot
        for d in range(c):
            if (
                ints[s.gate + d] >= 0
                and ints[s.model + d] == ints[s.model + c]
                and ints[s.layout + plan[d]] == target
            ):
                gate = ints[s.gate + d]
                break
        ints[s.gate + c] = gate
        if gate == slot:
            m = ints[s.model + c]
            at = ints[s.realloc_start + m] + source * ints[s.realloc_size + m] + target
            reals[s.slot_seconds + slot] = moves[at]


@inlined
def _path_bound(s: Space, ints: Ints, reals: Floats) -> float:
    """The longest path through a window, 0 where the graph has none.

    Train calls come first, in the order of their positions; whatever shares a device with one
    of them waits for it (see `realloc.search.windows`).
    """
    longest = 0.0
    trains = 0
    for i in range(s.num_window):
        c = ints[s.window_order + i]
        t = ints[s.train + c]
        begin = 0.0
        if t == c:
            begin = _end_of(s, ints, reals, ints[s.overlap + c] & trains)
            trains |= 1 << c
        else:
            meets = ints[s.overlap + c]
            if ints[s.gate + c] >= 0:
                meets |= ints[s.overlap + t]
            waits = _end_of(s, ints, reals, meets & trains)
            for j in range(ints[s.window_before_start + c], ints[s.window_before_start + c + 1]):
                b = ints[s.window_before + j]
                if b != t:
                    begin = max(begin, reals[s.path + b])
            if ints[s.gate + c] >= 0:
                waits = max(waits, reals[s.path + t])
                waits += reals[s.slot_seconds + ints[s.gate + c]]
            elif t >= 0:
                waits = max(waits, reals[s.path + t])
            begin = max(begin, waits)
        reals[s.path + c] = begin + reals[s.slot_seconds + ints[s.call_slot + c]]
        longest = max(longest, reals[s.path + c])
    return longest


@inlined
def _end_of(s: Space, ints: Ints, reals: Floats, calls: int) -> float:
    """The latest end within the window of a bit set of calls."""
    end = 0.0
    for c in range(s.num_calls):
        if (calls >> c) & 1:
            end = max(end, reals[s.path + c])
    return end
