"""A price on memory: what it costs, in seconds, that a choice must fit the cluster.

All devices × bytes of a plan must fit the memory of all devices. With each task's weight given,
a price per share of that memory is added to the seconds of every option, and the price of the
whole is taken off again: Σ weight × seconds + price × (Σ share − room). Plans that fit are not
made dearer by it, so the least over all options is a bound for any price (Lagrange). It is found
call by call at a vertex of the set's hull (`realloc.search.trade_offs`). The best price is where
the calls, giving up seconds for memory wherever it is cheapest, just fit; there one call is
between two options.

Calls that may share a layout with another that counts add nothing. Where the user of a train
call follows and their weights are alike, the two trade together, in their lesser weight.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined
from realloc.search.facts import follows, least_seconds
from realloc.search.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROOM = 1.0 + 1e-9
"""Of the cluster's memory: a plan that fills every device must not exceed it by rounding."""

_ALIKE = 0.5
"""Of the greater weight, that the lesser one of two calls that trade together is at least."""


@inlined
def counted_calls(r: Relaxation, ints: Ints, choice: Ints) -> int:
    """Bit set of calls of which no two may share a layout; train calls first."""
    counted = 0
    for c in range(r.num_calls):
        counted |= int(ints[r.train + c] == c) << c
    for c in range(r.num_calls):
        shared = ints[r.mates + c] & counted | int(follows(r, ints, choice, c))
        for d in range(c + 1, r.num_calls):
            shared |= (counted >> d) & (ints[r.mates + d] >> c) & 1
        counted |= int(shared == 0) << c
    return counted


@inlined
def trades_with(r: Relaxation, ints: Ints, choice: Ints, c: int, weights: Floats) -> int:
    """The user that a train call trades together with, or −1."""
    user = ints[r.user + c]
    if user < 0 or not follows(r, ints, choice, user):
        return -1
    lesser = min(weights[c], weights[user])
    alike = lesser > 0.0 and lesser >= _ALIKE * max(weights[c], weights[user])
    return int(user) if alike else -1


@inlined
def settle_price(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, counted: int, weights: Floats
) -> float:
    """Find the price of memory under given weights; infinity where nothing fits.

    Fills `weights[T]` with the price of all memory, and `mixed` with each call's seconds at the
    point where the calls just fit.

    Returns:
        The bound.
    """
    for c in range(r.num_calls):
        reals[r.mixed + c] = least_seconds(r, ints, reals, choice, c)
    used = 0.0
    bound = 0.0
    for t in range(r.num_calls, r.num_tasks):
        bound += weights[t] * reals[r.task_seconds + t]
    for c in range(r.num_calls):
        bound += weights[c] * reals[r.mixed + c]
        at = ints[r.trade_start + choice[c]]
        ints[r.vertex + c] = at
        reals[r.part + c] = 0.0
        ints[r.last_vertex + c] = ints[r.trade_start + choice[c] + 1] - 1
        reals[r.trade_weight + c] = weights[c]
        user = trades_with(r, ints, choice, c, weights)
        if user >= 0:
            row = r.trade_start + r.num_sets + 1 + choice[c]
            at = ints[row]
            ints[r.vertex + c] = at
            ints[r.last_vertex + c] = ints[row + 1] - 1
            lesser = min(weights[c], weights[user])
            reals[r.trade_weight + c] = lesser
            more = reals[r.trade_seconds + at] - reals[r.mixed + c] - reals[r.mixed + user]
            bound += lesser * more
        if (counted >> c) & 1:
            used += reals[r.trade_share + at]
    price = 0.0
    while used > ROOM:
        c = _cheapest(r, ints, reals, counted)
        if c < 0:
            return np.inf
        at = ints[r.vertex + c]
        more = reals[r.trade_weight + c]
        more *= reals[r.trade_seconds + at + 1] - reals[r.trade_seconds + at]
        less = reals[r.trade_share + at] - reals[r.trade_share + at + 1]
        part = min(1.0, (used - ROOM) / less)
        price = max(price, more / less)
        used -= part * less
        bound += part * more
        reals[r.part + c] = part
        if part < 1.0:
            break
        ints[r.vertex + c] += 1
        reals[r.part + c] = 0.0
    weights[r.num_tasks] = price
    _mix(r, ints, reals, choice, counted, weights)
    return bound


@inlined
def _mix(
    r: Relaxation, ints: Ints, reals: Floats, choice: Ints, counted: int, weights: Floats
) -> None:
    """The seconds of each call between the two vertices where it stands."""
    for c in range(r.num_calls):
        if (counted >> c) & 1 == 0:
            continue
        at = ints[r.vertex + c]
        seconds = reals[r.trade_seconds + at]
        of_user = reals[r.trade_user_seconds + at]
        part = reals[r.part + c]
        if part > 0.0:
            seconds += part * (reals[r.trade_seconds + at + 1] - seconds)
            of_user += part * (reals[r.trade_user_seconds + at + 1] - of_user)
        reals[r.mixed + c] = seconds - of_user
        user = trades_with(r, ints, choice, c, weights)
        if user >= 0:
            reals[r.mixed + user] = of_user


@inlined
def _cheapest(r: Relaxation, ints: Ints, reals: Floats, counted: int) -> int:
    """The call that gives up the fewest weighted seconds per share; −1 where none has any."""
    cheapest = -1
    least = np.inf
    for c in range(r.num_calls):
        at = ints[r.vertex + c]
        if (counted >> c) & 1 and at < ints[r.last_vertex + c]:
            more = reals[r.trade_seconds + at + 1] - reals[r.trade_seconds + at]
            less = reals[r.trade_share + at] - reals[r.trade_share + at + 1]
            rate = reals[r.trade_weight + c] * more / less
            if rate < least:
                least = rate
                cheapest = c
    return cheapest


@inlined
def priced_bound(r: Relaxation, ints: Ints, reals: Floats, choice: Ints, weights: Floats) -> float:
    """The bound by weights and a price that another choice was given."""
    price = weights[r.num_tasks]
    counted = int(weights[r.num_tasks + 1])
    bound = -price * ROOM
    for t in range(r.num_tasks):
        bound += weights[t] * reals[r.task_seconds + t]
    for c in range(r.num_calls):
        user = trades_with(r, ints, choice, c, weights)
        if user < 0 and (price == 0.0 or (counted >> c) & 1 == 0):
            continue
        row = r.trade_start + choice[c]
        weight = weights[c]
        alone = weight * reals[r.task_seconds + c]
        if user >= 0:
            row += r.num_sets + 1
            weight = min(weight, weights[user])
            alone = weight * (reals[r.task_seconds + c] + reals[r.task_seconds + user])
        least = np.inf
        for at in range(ints[row], ints[row + 1]):
            here = weight * reals[r.trade_seconds + at] + price * reals[r.trade_share + at]
            least = min(least, here)
        bound += least - alone
    return float(bound)
