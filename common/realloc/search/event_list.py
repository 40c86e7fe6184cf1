"""One plan's schedule, event by event: what the simulator does, on flat arrays.

Devices need no table: start = max(ready, latest end of earlier work on any device of the work),
and the latest end on a device range is the latest end among the slots that share a device with
it. A node is ``iteration << slot_shift | slot`` with iterations from 0, so nodes compare as
(iteration, position) does. Nodes whose ready time is known stand in a queue in the order of
their commitment; each enters it once, so the queue never wraps.

The evaluator has filled which calls share devices, what each slot takes, and which reallocation
each call waits for.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.space import Space

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def run_events(s: Space, ints: Ints, reals: Floats, cutoff: float) -> float:
    """(end of the last iteration − end of the first) per iteration between the two.

    Returns:
        The seconds; or, once they are known to be at least `cutoff`, a number that is, too.
    """
    padded = 1 << s.slot_shift
    divisor = float(s.iterations - 1)
    _fill_clashes(s, ints, reals)
    queued = _fill_nodes(s, ints, reals)
    for i in range(padded):
        reals[s.claimed + i] = 0.0
    first_end = 0.0
    first_left = s.num_calls
    last_end = 0.0
    done = 0
    while done < queued:
        node = ints[s.queue + done]
        done += 1
        slot = node & (padded - 1)
        end = max(reals[s.ready + node], reals[s.claimed + slot]) + reals[s.slot_seconds + slot]
        _claim_devices(s, reals, slot, end)
        c = ints[s.slot_call + slot]
        if slot != ints[s.call_slot + c]:
            queued = _end_move(s, ints, reals, node, c, end, done, queued)
            continue
        if node < padded:
            first_end = max(first_end, end)
            first_left -= 1
        last_end = max(last_end, end)
        if first_left == 0 and (last_end - first_end) / divisor >= cutoff:
            break
        queued = _end_call(s, ints, reals, node, c, end, done, queued)
    return float((last_end - first_end) / divisor)


@inlined
def _fill_clashes(s: Space, ints: Ints, reals: Floats) -> None:
    """Which slots share a device with which, from which calls do."""
    padded = 1 << s.slot_shift
    for slot in range(s.num_slots):
        c = ints[s.slot_call + slot]
        ints[s.slot_calls + slot] = 1 << c
        if slot != ints[s.call_slot + c]:
            moves = int(ints[s.gate + c] == slot)
            ints[s.slot_calls + slot] = moves * ((1 << c) | (1 << ints[s.train + c]))
    for slot in range(s.num_slots):
        c = ints[s.slot_call + slot]
        mask = ints[s.overlap + c]
        if slot != ints[s.call_slot + c]:
            if ints[s.gate + c] != slot:
                continue  # never committed
            mask |= ints[s.overlap + ints[s.train + c]]
        row = s.clash + slot * padded
        for other in range(padded):
            reals[row + other] = 1.0 if mask & ints[s.slot_calls + other] else 0.0


@inlined
def _fill_nodes(s: Space, ints: Ints, reals: Floats) -> int:
    """What every node waits for; the nodes that wait for nothing are queued, in their order.

    Returns:
        How many nodes are queued.
    """
    padded = 1 << s.slot_shift
    for i in range(s.iterations * padded):
        reals[s.ready + i] = 0.0
        ints[s.missing + i] = ints[s.waits + i]
    for c in range(s.num_calls):
        if ints[s.gate + c] >= 0:
            # Version 0 is there at the start, its reallocation is not.
            for i in range(s.first_lag):
                ints[s.missing + i * padded + ints[s.call_slot + c]] += 1
    queued = 0
    for i in range(s.num_sources):
        node = ints[s.sources + i]
        slot = node & (padded - 1)
        c = ints[s.slot_call + slot]
        is_move = slot != ints[s.call_slot + c]
        ready = ints[s.gate + c] == slot if is_move else ints[s.missing + node] == 0
        if ready:
            ints[s.queue + queued] = node
            queued += 1
    return queued


@inlined
def _claim_devices(s: Space, reals: Floats, slot: int, end: float) -> None:
    """Whatever shares a device with the slot starts at its end or later."""
    row = s.clash + (slot << s.slot_shift)
    for block in range(0, 1 << s.slot_shift, 8):
        for i in range(block, block + 8):
            # 0 or the end: no branch, so that several slots are one instruction.
            reals[s.claimed + i] = max(reals[s.claimed + i], end * reals[row + i])


@inlined
def _end_move(
    s: Space, ints: Ints, reals: Floats, node: int, c: int, end: float, done: int, queued: int
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
                queued = _release(s, ints, reals, user, end, done, queued)
    return queued


@inlined
def _end_call(
    s: Space, ints: Ints, reals: Floats, node: int, c: int, end: float, done: int, queued: int
) -> int:
    """Release what waits for the call; behind a train call, for its version, too."""
    padded = 1 << s.slot_shift
    base = node - ints[s.call_slot + c]
    for j in range(ints[s.after_start + c], ints[s.after_start + c + 1]):
        queued = _release(s, ints, reals, base + ints[s.after_slot + j], end, done, queued)
    if ints[s.train + c] == c:
        queued = _release(s, ints, reals, node + padded, end, done, queued)
        later = base + (1 + s.staleness) * padded
        for j in range(ints[s.mate_start + c], ints[s.mate_start + c + 1]):
            d = ints[s.mate + j]
            target = ints[s.call_slot + d] if ints[s.gate + d] < 0 else ints[s.move_slot + d]
            if ints[s.gate + d] < 0 or ints[s.gate + d] == target:
                queued = _release(s, ints, reals, later + target, end, done, queued)
    return queued


@inlined
def _release(
    s: Space, ints: Ints, reals: Floats, node: int, end: float, done: int, queued: int
) -> int:
    """Tell a node that one thing it waits for ended; queue it where that was the last."""
    if node >= s.iterations << s.slot_shift:
        return queued
    ready = max(reals[s.ready + node], end)
    reals[s.ready + node] = ready
    ints[s.missing + node] -= 1
    if ints[s.missing + node] != 0:
        return queued
    at = queued
    while at > done:
        other = ints[s.queue + at - 1]
        time = reals[s.ready + other]
        if time < ready or (time == ready and other < node):
            break
        ints[s.queue + at] = other
        at -= 1
    ints[s.queue + at] = node
    return queued + 1
