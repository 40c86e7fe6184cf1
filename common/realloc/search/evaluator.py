"""The simulator of `realloc.cost.simulator`, compiled: the same number, a thousand times faster.

A plan is an int64 array of option indices, one per call. Devices need no table: start =
max(ready, latest end of earlier work on any device of the work), and the latest end on a
device range is the latest end among the slots that share a device with it. A node of the
event list is ``iteration << slot_shift | slot`` with iterations from 0, so nodes compare as
(iteration, position) does.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled, inlined
from realloc.search.space import Space

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MARGIN = 1e-9
"""Relative slack by which a bound must exceed a threshold before it prunes: bounds add in
another order than the simulator, so they are exact only up to rounding."""


@compiled
def evaluate(s: Space, ints: Ints, reals: Floats, plan: Ints, cutoff: float) -> float:
    """Seconds per iteration of a plan, exactly.

    Returns:
        The seconds; infinity where the plan does not fit the memory; or, where the exact
        seconds are known to be at least `cutoff`, any number that is at least `cutoff`.
    """
    _overlaps(s, ints, reals, plan)
    bound = _load_bound(s, ints, reals, plan)
    if bound == np.inf or bound > cutoff * (1.0 + MARGIN):
        return bound
    _gates(s, ints, reals, plan)
    bound = _path_bound(s, ints, reals)
    if bound > cutoff * (1.0 + MARGIN):
        return bound
    _conflicts(s, ints, reals)
    return _run(s, ints, reals, cutoff)


@compiled
def evaluate_fully(s: Space, ints: Ints, reals: Floats, plan: Ints) -> float:
    """Seconds per iteration of a plan, whether it fits the memory or not."""
    _overlaps(s, ints, reals, plan)
    _gates(s, ints, reals, plan)
    _conflicts(s, ints, reals)
    return _run(s, ints, reals, np.inf)


@compiled
def plan_peak_bytes(s: Space, ints: Ints, reals: Floats, plan: Ints) -> int:
    """The largest peak over the devices.

    The calls on a device are all on the first device of the one that starts last, so the
    first devices of the calls suffice.
    """
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
def _gates(s: Space, ints: Ints, reals: Floats, plan: Ints) -> None:
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
            reals[s.slot_seconds + slot] = reals[s.realloc + at]


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


@inlined
def _conflicts(s: Space, ints: Ints, reals: Floats) -> None:
    """Which slots share a device with which, from which calls do."""
    for slot in range(s.num_slots):
        c = ints[s.slot_call + slot]
        ints[s.slot_calls + slot] = 1 << c
        ints[s.slot_mask + slot] = ints[s.overlap + c]
        if slot != ints[s.call_slot + c]:
            if ints[s.gate + c] != slot:
                ints[s.slot_calls + slot] = 0
                ints[s.slot_mask + slot] = 0
            else:
                ints[s.slot_calls + slot] |= 1 << ints[s.train + c]
                ints[s.slot_mask + slot] |= ints[s.overlap + ints[s.train + c]]
    for slot in range(s.num_slots):
        mask = ints[s.slot_mask + slot]
        conflict = 0
        for other in range(s.num_slots):
            conflict |= int((mask & ints[s.slot_calls + other]) != 0) << other
        ints[s.conflict + slot] = conflict


@inlined
def _fill_nodes(s: Space, ints: Ints, reals: Floats) -> int:
    """What every node waits for; the nodes that wait for nothing are queued.

    Returns:
        How many nodes are queued.
    """
    padded = 1 << s.slot_shift
    never = 1 << 40
    queued = 0
    for i in range(s.iterations * padded):
        reals[s.ready + i] = 0.0
    for c in range(s.num_calls):
        slot = ints[s.call_slot + c]
        move = ints[s.move_slot + c]
        lag = 1 + s.staleness
        if ints[s.train + c] == c:
            lag = 1
        for i in range(s.iterations):
            count = ints[s.num_before + c]
            node = i * padded + slot
            if ints[s.train + c] >= 0 and (i >= lag or ints[s.gate + c] >= 0):
                count += 1
            ints[s.missing + node] = count
            if count == 0:
                ints[s.queue + queued] = node
                queued += 1
            if move >= 0:
                ints[s.missing + i * padded + move] = never if i > 0 and i < lag else int(i > 0)
                if i == 0 and ints[s.gate + c] == move:
                    ints[s.queue + queued] = move
                    queued += 1
    return queued


@inlined
def _run(s: Space, ints: Ints, reals: Floats, cutoff: float) -> float:
    """The event list; see `evaluate` for the cutoff."""
    padded = 1 << s.slot_shift
    divisor = float(s.iterations - 1)
    queued = _fill_nodes(s, ints, reals)
    for i in range(padded):
        reals[s.claimed + i] = 0.0
    first_end = 0.0
    first_left = s.num_calls
    last_end = 0.0
    while queued > 0:
        node = _take_first(s, ints, reals, queued)
        queued -= 1
        slot = node & (padded - 1)
        ready = reals[s.ready + node]
        end = max(ready, reals[s.claimed + slot]) + reals[s.slot_seconds + slot]
        _claim_devices(s, ints, reals, slot, end)
        c = ints[s.slot_call + slot]
        if slot != ints[s.call_slot + c]:
            queued = _end_move(s, ints, reals, node, c, end, queued)
            continue
        if node < padded:
            first_end = max(first_end, end)
            first_left -= 1
        last_end = max(last_end, end)
        if first_left == 0 and (last_end - first_end) / divisor >= cutoff:
            break
        queued = _end_call(s, ints, reals, node, c, end, queued)
    return float((last_end - first_end) / divisor)


@inlined
def _take_first(s: Space, ints: Ints, reals: Floats, queued: int) -> int:
    """Take from the queue the node that is committed next."""
    best = 0
    node = ints[s.queue + 0]
    ready = reals[s.ready + node]
    for i in range(1, queued):
        other = ints[s.queue + i]
        time = reals[s.ready + other]
        if time < ready or (time == ready and other < node):
            best = i
            node = other
            ready = time
    ints[s.queue + best] = ints[s.queue + queued - 1]
    return int(node)


@inlined
def _claim_devices(s: Space, ints: Ints, reals: Floats, slot: int, end: float) -> None:
    """Whatever shares a device with the slot starts at its end or later."""
    mask = ints[s.conflict + slot]
    for block in range(s.claimed, s.claimed + (1 << s.slot_shift), 8):
        for i in range(8):
            # 0 or the end: no branch, so that eight slots are one instruction.
            claim = end * ((mask >> i) & 1)
            reals[block + i] = max(reals[block + i], claim)
        mask >>= 8


@inlined
def _end_move(
    s: Space, ints: Ints, reals: Floats, node: int, c: int, end: float, queued: int
) -> int:
    """Release the calls that use the layout; `c` is the first. Returns how many are queued."""
    padded = 1 << s.slot_shift
    slot = node & (padded - 1)
    base = node - slot
    owner = ints[s.train + c]
    # Version 0 serves iterations 1 to 1 + staleness.
    upto = (1 + s.staleness) * padded if base == 0 else padded
    for j in range(ints[s.mate_start + owner], ints[s.mate_start + owner + 1]):
        d = ints[s.mate + j]
        if ints[s.gate + d] == slot:
            for step in range(0, upto, padded):
                user = base + step + ints[s.call_slot + d]
                queued = _release(s, ints, reals, user, end, queued)
    return queued


@inlined
def _end_call(
    s: Space, ints: Ints, reals: Floats, node: int, c: int, end: float, queued: int
) -> int:
    """Release what waits for the call; behind a train call, for its version, too."""
    padded = 1 << s.slot_shift
    base = node - ints[s.call_slot + c]
    for j in range(ints[s.after_start + c], ints[s.after_start + c + 1]):
        after = base + ints[s.call_slot + ints[s.after + j]]
        queued = _release(s, ints, reals, after, end, queued)
    if ints[s.train + c] == c:
        queued = _release(s, ints, reals, node + padded, end, queued)
        later = base + (1 + s.staleness) * padded
        for j in range(ints[s.mate_start + c], ints[s.mate_start + c + 1]):
            d = ints[s.mate + j]
            target = ints[s.call_slot + d] if ints[s.gate + d] < 0 else ints[s.move_slot + d]
            if ints[s.gate + d] < 0 or ints[s.gate + d] == target:
                queued = _release(s, ints, reals, later + target, end, queued)
    return queued


@inlined
def _release(s: Space, ints: Ints, reals: Floats, node: int, end: float, queued: int) -> int:
    """Tell a node that one thing it waits for ended; queue it where that was the last."""
    if node < s.iterations << s.slot_shift:
        reals[s.ready + node] = max(reals[s.ready + node], end)
        ints[s.missing + node] -= 1
        if ints[s.missing + node] == 0:
            ints[s.queue + queued] = node
            queued += 1
    return queued
