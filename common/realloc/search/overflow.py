"""Which choices need more memory than a device has, whatever their sets' options are.

A device holds the resident bytes of all its calls, a layout that calls of one model share only
once, and the active bytes of one call at a time.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.facts import may_follow
from realloc.search.relaxation import MAX_CALLS_WITH_MEMORY, Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@inlined
def fill_mates(r: Relaxation, ints: Ints, choice: Ints) -> None:
    """Of each call the earlier calls that may hold the same model in the same layout."""
    for c in range(r.num_calls):
        ints[r.mates + c] = 0
        for d in range(c):
            if ints[r.model + d] == ints[r.model + c] and _may_share(r, ints, choice, c, d):
                ints[r.mates + c] |= 1 << d


@inlined
def _may_share(r: Relaxation, ints: Ints, choice: Ints, c: int, d: int) -> bool:
    """Whether two calls of one model may have one layout; equal layouts have equal devices."""
    a = choice[c]
    b = choice[d]
    if not (ints[r.has_layout + a] and ints[r.has_layout + b]):
        return False
    if ints[r.option + a] >= 0 and ints[r.option + b] >= 0:
        return bool(ints[r.layout + ints[r.option + a]] == ints[r.layout + ints[r.option + b]])
    train = ints[r.train + c]
    if train == c:
        return may_follow(r, ints, choice, d)
    if train == d:
        return may_follow(r, ints, choice, c)
    return bool(
        ints[r.call_hull_first + c] < ints[r.call_hull_last + d]
        and ints[r.call_hull_first + d] < ints[r.call_hull_last + c]
    )


@inlined
def _added_bytes(r: Relaxation, ints: Ints, c: int, others: int) -> int:
    """Resident bytes that a call adds to those of other calls on a device, at least.

    Calls of one layout hold the largest figure among them, once. Taken in the order of their
    positions, each adds at most its excess over those before it; counting the excess over all
    that may share its layout never counts more.
    """
    held = 0
    mates = ints[r.mates + c] & others
    if mates:
        for d in range(c):
            if (mates >> d) & 1:
                held = max(held, ints[r.call_resident + d])
    return int(max(0, ints[r.call_resident + c] - held))


@inlined
def overflows(r: Relaxation, ints: Ints) -> bool:
    """Some calls that must meet on a device need more memory than it has.

    Calls that leave out fewer devices, all together, than there are, have one in common. Which
    calls fit one device is noted in `held`: their resident bytes, or −1 where they do not.
    """
    if r.num_calls > MAX_CALLS_WITH_MEMORY:
        return False
    ints[r.left_out] = 0
    ints[r.held] = 0
    ints[r.largest] = 0
    for c in range(r.num_calls):
        bit = 1 << c
        left_out = r.num_devices - ints[r.call_devices + c]
        active = ints[r.call_active + c]
        for others in range(bit):
            chosen = others | bit
            out = ints[r.left_out + others] + left_out
            most = max(ints[r.largest + others], active)
            held = ints[r.held + others]
            if held >= 0:
                held += _added_bytes(r, ints, c, others)
                if held + most > r.device_memory_bytes:
                    held = -1
            if held < 0 and out < r.num_devices:
                return True
            ints[r.left_out + chosen] = out
            ints[r.largest + chosen] = most
            ints[r.held + chosen] = held
    return False


@inlined
def overflows_where_known(r: Relaxation, ints: Ints) -> bool:
    """The calls whose options all have a certain device in common do not fit it."""
    for c in range(r.num_calls):
        device = ints[r.call_core_first + c]
        if device >= ints[r.call_core_last + c]:
            continue
        present = 0
        for d in range(r.num_calls):
            first = ints[r.call_core_first + d]
            present |= int(first <= device < ints[r.call_core_last + d]) << d
        held = 0
        active = 0
        for d in range(r.num_calls):
            if (present >> d) & 1:
                held += _added_bytes(r, ints, d, present)
                active = max(active, ints[r.call_active + d])
        if held + active > r.device_memory_bytes:
            return True
    return False
