"""The simulator of `realloc.cost.simulator`, compiled: the same number, a thousand times faster.

A plan is an int64 array of option indices, one per call. Devices need no table: start =
max(ready, latest end of earlier work on any device of the work), and the latest end on a
device range is the latest end among the slots that share a device with it. A node of the
event list is ``iteration << slot_shift | slot`` with iterations from 0, so nodes compare as
(iteration, position) does.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled
from realloc.search.space import Space, Workspace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MARGIN = 1e-9
"""Relative slack by which a bound must exceed a threshold before it prunes: bounds add in
another order than the simulator, so they are exact only up to rounding."""


@compiled
def evaluate(s: Space, w: Workspace, plan: Ints, cutoff: float) -> float:
    """Seconds per iteration of a plan, exactly.

    Returns:
        The seconds; infinity where the plan does not fit the memory; or, where the exact
        seconds are known to be at least `cutoff`, any number that is at least `cutoff`.
    """
    _overlaps(s, w, plan)
    bound = _load_bound(s, w, plan)
    if bound == np.inf or bound > cutoff * (1.0 + MARGIN):
        return bound
    _gates(s, w, plan)
    bound = _path_bound(s, w)
    if bound > cutoff * (1.0 + MARGIN):
        return bound
    _conflicts(s, w)
    return _run(s, w, cutoff)


@compiled
def evaluate_fully(s: Space, w: Workspace, plan: Ints) -> float:
    """Seconds per iteration of a plan, whether it fits the memory or not."""
    _overlaps(s, w, plan)
    _gates(s, w, plan)
    _conflicts(s, w)
    return _run(s, w, np.inf)


@compiled
def plan_peak_bytes(s: Space, w: Workspace, plan: Ints) -> int:
    """The largest peak over the devices.

    The calls on a device are all on the first device of the one that starts last, so the
    first devices of the calls suffice.
    """
    _keep_shared_layouts(s, w, plan)
    peak = 0
    for c in range(s.num_calls):
        device = s.first[plan[c]]
        resident = 0
        active = 0
        for d in range(s.num_calls):
            o = plan[d]
            if s.first[o] <= device < s.last[o]:
                resident += w.kept[d]
                active = max(active, s.active[o])
        peak = max(peak, resident + active)
    return peak


@compiled
def evaluate_many(s: Space, w: Workspace, plans: Ints, seconds: Floats) -> None:
    """Exact seconds of each row of `plans`, infinity where it does not fit."""
    for i in range(len(plans)):
        seconds[i] = evaluate(s, w, plans[i], np.inf)


@compiled
def _overlaps(s: Space, w: Workspace, plan: Ints) -> None:
    """Which calls share a device with which; every call does with itself."""
    for c in range(s.num_calls):
        w.overlap[c] = 1 << c
    for c in range(1, s.num_calls):
        first = s.first[plan[c]]
        last = s.last[plan[c]]
        mask = w.overlap[c]
        for d in range(c):
            shared = np.int64((s.first[plan[d]] < last) & (first < s.last[plan[d]]))
            mask |= shared << d
            w.overlap[d] |= shared << c
        w.overlap[c] = mask


@compiled
def _keep_shared_layouts(s: Space, w: Workspace, plan: Ints) -> None:
    """Count the resident bytes of a shared (model, layout) at the call with the most."""
    for c in range(s.num_calls):
        kept = s.resident[plan[c]]
        layout = s.layout[plan[c]]
        if layout >= 0:
            for d in range(s.num_calls):
                if d != c and s.model[d] == s.model[c] and s.layout[plan[d]] == layout:
                    other = s.resident[plan[d]]
                    if other > kept or (other == kept and d < c):
                        kept = 0
                        break
        w.kept[c] = kept


@compiled
def _load_bound(s: Space, w: Workspace, plan: Ints) -> float:
    """Infinity where a device's memory overflows, else the busiest device's seconds.

    All work of a window is done one after the other on a device, so the seconds bound the
    plan's; they are 0 where the graph has no windows.
    """
    _keep_shared_layouts(s, w, plan)
    windows = len(s.window_order) > 0
    busiest = 0.0
    for c in range(s.num_calls):
        device = s.first[plan[c]]
        resident = 0
        active = 0
        busy = 0.0
        mask = w.overlap[c]
        for d in range(s.num_calls):
            o = plan[d]
            if (mask >> d) & 1 and s.first[o] <= device:
                resident += w.kept[d]
                active = max(active, s.active[o])
                busy += s.seconds[o]
        if resident + active > s.device_memory_bytes:
            return np.inf
        busiest = max(busiest, busy)
    return busiest if windows else 0.0


@compiled
def _gates(s: Space, w: Workspace, plan: Ints) -> None:
    """Seconds of the slots, and the reallocation that each call waits for."""
    for c in range(s.num_calls):
        o = plan[c]
        w.slot_seconds[s.call_slot[c]] = s.seconds[o]
        w.gate[c] = -1
        slot = s.move_slot[c]
        if slot < 0:
            continue
        w.slot_seconds[slot] = 0.0
        source = s.layout[plan[s.train[c]]]
        target = s.layout[o]
        if source < 0 or target < 0 or source == target:
            continue
        gate = slot
        for d in range(c):
            if w.gate[d] >= 0 and s.model[d] == s.model[c] and s.layout[plan[d]] == target:
                gate = w.gate[d]
                break
        w.gate[c] = gate
        if gate == slot:
            m = s.model[c]
            at = s.realloc_start[m] + source * s.realloc_size[m] + target
            w.slot_seconds[slot] = s.realloc[at]


@compiled
def _path_bound(s: Space, w: Workspace) -> float:
    """The longest path through a window, 0 where the graph has none."""
    longest = 0.0
    for i in range(len(s.window_order)):
        c = s.window_order[i]
        begin = 0.0
        for j in range(s.window_before_start[c], s.window_before_start[c + 1]):
            b = s.window_before[j]
            end = w.path[b]
            if w.gate[c] >= 0 and b == s.train[c]:
                end += w.slot_seconds[w.gate[c]]
            begin = max(begin, end)
        w.path[c] = begin + w.slot_seconds[s.call_slot[c]]
        longest = max(longest, w.path[c])
    return longest


@compiled
def _conflicts(s: Space, w: Workspace) -> None:
    """Which slots share a device with which, from which calls do."""
    for slot in range(s.num_slots):
        c = s.slot_call[slot]
        w.slot_calls[slot] = 1 << c
        w.slot_mask[slot] = w.overlap[c]
        if slot != s.call_slot[c]:
            if w.gate[c] != slot:
                w.slot_calls[slot] = 0
                w.slot_mask[slot] = 0
            else:
                w.slot_calls[slot] |= 1 << s.train[c]
                w.slot_mask[slot] |= w.overlap[s.train[c]]
    for slot in range(s.num_slots):
        mask = w.slot_mask[slot]
        conflict = 0
        for other in range(s.num_slots):
            conflict |= np.int64((mask & w.slot_calls[other]) != 0) << other
        w.conflict[slot] = conflict


@compiled
def _fill_nodes(s: Space, w: Workspace) -> int:
    """What every node waits for; the nodes that wait for nothing are queued.

    Returns:
        How many nodes are queued.
    """
    padded = 1 << s.slot_shift
    never = 1 << 40
    queued = 0
    for i in range((s.iterations + 1 + s.staleness) * padded):
        w.ready[i] = 0.0
    for c in range(s.num_calls):
        slot = s.call_slot[c]
        move = s.move_slot[c]
        lag = 1 + s.staleness
        if s.train[c] == c:
            lag = 1
        for i in range(s.iterations):
            count = s.num_before[c]
            node = i * padded + slot
            if s.train[c] >= 0 and (i >= lag or w.gate[c] >= 0):
                count += 1
            w.missing[node] = count
            if count == 0:
                w.queue[queued] = node
                queued += 1
            if move >= 0:
                w.missing[i * padded + move] = never if i > 0 and i < lag else np.int64(i > 0)
                if i == 0 and w.gate[c] == move:
                    w.queue[queued] = move
                    queued += 1
    return queued


@compiled
def _run(s: Space, w: Workspace, cutoff: float) -> float:
    """The event list; see `evaluate` for the cutoff."""
    shift = s.slot_shift
    padded = 1 << shift
    num_nodes = s.iterations * padded
    divisor = np.float64(s.iterations - 1)
    lag = (1 + s.staleness) * padded
    queued = _fill_nodes(s, w)
    for i in range(padded):
        w.claimed[i] = 0.0
    first_end = 0.0
    first_left = s.num_calls
    last_end = 0.0
    while queued > 0:
        best = 0
        node = w.queue[0]
        ready = w.ready[node]
        for i in range(1, queued):
            other = w.queue[i]
            time = w.ready[other]
            if time < ready or (time == ready and other < node):
                best = i
                node = other
                ready = time
        queued -= 1
        w.queue[best] = w.queue[queued]
        slot = node & (padded - 1)
        base = node - slot
        end = max(ready, w.claimed[slot]) + w.slot_seconds[slot]
        mask = w.conflict[slot]
        for i in range(s.num_slots):
            if (mask >> i) & 1:
                w.claimed[i] = max(w.claimed[i], end)
        c = s.slot_call[slot]
        if slot != s.call_slot[c]:
            users = s.train[c]
            for j in range(s.mate_start[users], s.mate_start[users + 1]):
                d = s.mate[j]
                if w.gate[d] == slot:
                    # Version 0 serves iterations 1 to 1 + staleness.
                    upto = lag if base == 0 else padded
                    for step in range(0, upto, padded):
                        queued = _release(w, base + step + s.call_slot[d], end, queued, num_nodes)
            continue
        if base == 0:
            first_end = max(first_end, end)
            first_left -= 1
        last_end = max(last_end, end)
        if first_left == 0 and (last_end - first_end) / divisor >= cutoff:
            return (last_end - first_end) / divisor
        for j in range(s.after_start[c], s.after_start[c + 1]):
            queued = _release(w, base + s.call_slot[s.after[j]], end, queued, num_nodes)
        if s.train[c] == c:
            queued = _release(w, node + padded, end, queued, num_nodes)
            for j in range(s.mate_start[c], s.mate_start[c + 1]):
                d = s.mate[j]
                target = s.call_slot[d] if w.gate[d] < 0 else s.move_slot[d]
                if w.gate[d] < 0 or w.gate[d] == target:
                    queued = _release(w, base + lag + target, end, queued, num_nodes)
    return (last_end - first_end) / divisor


@compiled
def _release(w: Workspace, node: int, end: float, queued: int, num_nodes: int) -> int:
    """Tell a node that one thing it waits for ended; queue it where that was the last."""
    if node < num_nodes:
        w.ready[node] = max(w.ready[node], end)
        w.missing[node] -= 1
        if w.missing[node] == 0:
            w.queue[queued] = node
            queued += 1
    return queued
