"""Rounds: every pair of processes moves an equal share of its stream in each round.

What one process sends another is a *stream*: its flows end to end, small lines first and then
layer by layer, so that layers become complete one after the other. With ``R`` rounds, round
``k`` moves elements ``k · n / R … (k + 1) · n / R`` of a stream of ``n`` (moved down to the
start of a row where that keeps the bounds). So what a process sends and receives of these in each
round follows from its total, and both ends of a stream can compute their messages on their own.

A part that a process passes on is sent two rounds after it came in. How much that is differs from
round to round, so rounds are made as small as the fullest one needs. Where a process has more
peers than operations are allowed, pairs are dealt out to *windows* of rounds, one after another.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput
from realloc.core.transfer import Int64
from realloc.reallocation.flows import Routes
from realloc.reallocation.limits import Buffers, TransferLimits
from realloc.reallocation.lines import Lines

Float64 = NDArray[np.float64]
FORWARD_DELAY = 2
"""Rounds between receiving a part and passing it on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """When each element of each stream moves."""

    pair_sender: Int64
    pair_receiver: Int64
    """[pairs] endpoints, ordered by sender, then receiver."""
    pair_flow: Int64
    """[pairs + 1] pair p is direct flows pair_flow[p] … pair_flow[p + 1] − 1."""
    flow_begin: Int64
    """[flows + 1] elements of all streams before each direct flow."""
    window: Int64
    """[pairs] window in which the stream moves."""
    rounds_per_window: int
    shares: int
    """``R``: parts that each stream is cut into."""
    whole_rows: bool
    """True where cuts are moved to the start of a row."""
    num_rounds: int


def make_schedule(
    lines: Lines,
    routes: Routes,
    num_endpoints: int,
    element_bytes: int,
    limits: TransferLimits,
) -> Schedule:
    """Deal all flows out to rounds within the limits.

    Raises:
        InvalidInput: the limits are too small for what one process must do in a round.
    """
    direct = routes.direct
    change = np.flatnonzero(
        (np.diff(direct.sender, prepend=-1) != 0) | (np.diff(direct.receiver, prepend=-1) != 0)
    )
    pair_flow = np.append(change, len(direct)).astype(np.int64)
    flow_begin = np.concatenate([[0], np.cumsum(direct.num_elements)])
    sender, receiver = direct.sender[change], direct.receiver[change]
    window = _windows(routes, pair_flow, sender, receiver, num_endpoints, limits)
    shared = limits.buffers is Buffers.SHARED
    busiest = _busiest(routes, pair_flow, window, num_endpoints, with_own=shared)
    bound, round_bytes = "staging_bytes", limits.staging_bytes
    if len(routes.forwards) and limits.forward_bytes < round_bytes:
        bound, round_bytes = "forward_bytes", limits.forward_bytes
    capacity = round_bytes // element_bytes
    row = int(lines.atoms.cols.max(initial=1))
    whole_rows = busiest.streams * row <= capacity // 2
    slack = busiest.streams * (row if whole_rows else 1)
    if shared:
        _check_one_round(busiest, window, element_bytes, limits)
        slack = 0
    if slack >= capacity:
        raise InvalidInput.at(
            f"limits.{bound}", f"is {round_bytes}; raise it to {2 * slack * element_bytes}"
        )
    shares = max(1, -(-busiest.elements // (capacity - slack)))
    if len(routes.forwards) and not shared:
        streams = _Streams(pair_flow=pair_flow, flow_begin=flow_begin, window=window)
        while (peak := _fullest_round(routes, streams, num_endpoints, shares)) > capacity - slack:
            shares = math.ceil(shares * peak / (capacity - slack))
    rounds = shares + (FORWARD_DELAY if len(routes.forwards) else 0)
    return Schedule(
        pair_sender=sender,
        pair_receiver=receiver,
        pair_flow=pair_flow,
        flow_begin=flow_begin,
        window=window,
        rounds_per_window=rounds,
        shares=shares,
        whole_rows=whole_rows,
        num_rounds=rounds * (int(window.max(initial=-1)) + 1),
    )


def _pair_of_flow(pair_flow: Int64) -> Int64:
    return np.repeat(np.arange(len(pair_flow) - 1), np.diff(pair_flow))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Busiest:
    """The most that one process sends, or receives, in a window."""

    elements: int
    streams: int


def _busiest(
    routes: Routes, pair_flow: Int64, window: Int64, num_endpoints: int, *, with_own: bool
) -> _Busiest:
    pair = _pair_of_flow(pair_flow)
    elements, streams = 0, 0
    for end in ("sender", "receiver"):
        slots, sizes, peers = [], [], []
        for flows, of_pair in ((routes.direct, pair), (routes.forwards, pair[routes.parent])):
            away = (flows.sender != flows.receiver) | with_own
            slots.append(window[of_pair[away]] * num_endpoints + getattr(flows, end)[away])
            sizes.append(flows.num_elements[away])
            # A stream and what is passed on of it are cut at the same places.
            peers.append(of_pair[away] * num_endpoints + flows.receiver[away])
        slot, size, peer = map(np.concatenate, (slots, sizes, peers))
        if len(slot):
            elements = max(elements, int(np.bincount(slot, weights=size).max()))
            distinct = np.unique(slot * (int(peer.max()) + 1) + peer) // (int(peer.max()) + 1)
            streams = max(streams, int(np.bincount(distinct).max()))
    return _Busiest(elements=elements, streams=streams)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Streams:
    """See `Schedule`."""

    pair_flow: Int64
    flow_begin: Int64
    window: Int64


def _fullest_round(routes: Routes, streams: _Streams, num_endpoints: int, shares: int) -> float:
    """The most elements that one process sends, or receives, in a round of so many shares, but
    for what moving cuts to whole elements and rows adds."""
    pair = _pair_of_flow(streams.pair_flow)
    first = streams.flow_begin[streams.pair_flow]
    per_share = np.diff(first) / shares
    of = pair[routes.parent]
    begin = (streams.flow_begin[routes.parent] - first[of]) / per_share[of]
    end = (streams.flow_begin[routes.parent + 1] - first[of]) / per_share[of]
    fullest = 0.0
    for side in ("sender", "receiver"):
        slot = streams.window[pair] * num_endpoints + getattr(routes.direct, side)
        away = routes.direct.sender != routes.direct.receiver
        num_slots = num_endpoints * (int(streams.window.max()) + 1)
        direct = np.bincount(
            slot[away], weights=routes.direct.num_elements[away], minlength=num_slots
        )
        row = streams.window[of] * num_endpoints + getattr(routes.forwards, side)
        passed = _spread(row, begin, end, per_share[of], (num_slots, shares))
        fullest = max(fullest, float((direct / shares + passed.max(axis=1)).max()))
    return fullest


def _spread(
    row: Int64, begin: Float64, end: Float64, height: Float64, shape: tuple[int, int]
) -> Float64:
    """Sum of strips, float64 [rows, columns].

    Args:
        begin, end: columns that a strip covers; of the first and the last perhaps a part only.
        height: what it adds to a column that it covers whole.
    """
    columns = shape[1]
    first = np.minimum(begin.astype(np.int64), columns - 1)
    last = np.minimum(end.astype(np.int64), columns - 1)
    change = np.zeros((shape[0], columns + 2))
    # The running sum of a strip is 0 until `first`, then grows by `height` per column.
    for at, weight in (
        (first, height * (1 - (begin - first))),
        (first + 1, height * (begin - first)),
        (last, -height * (1 - (end - last))),
        (last + 1, -height * (end - last)),
    ):
        np.add.at(change, (row, at), weight)
    return np.cumsum(change, axis=1)[:, :columns]


def _check_one_round(
    busiest: _Busiest, window: Int64, element_bytes: int, limits: TransferLimits
) -> None:
    """Shared buffers need all source parameters packed in the first round."""
    needed = busiest.elements * element_bytes
    if needed > limits.staging_bytes or window.any():
        raise InvalidInput.at(
            "limits.buffers",
            f"are shared, so a process must stage {needed} bytes at once, and staging_bytes is "
            f"{limits.staging_bytes}, max_operations {limits.max_operations}; raise them or use "
            "separate buffers",
        )


def _windows(
    routes: Routes,
    pair_flow: Int64,
    sender: Int64,
    receiver: Int64,
    num_endpoints: int,
    limits: TransferLimits,
) -> Int64:
    """A window for each pair, so that no process exceeds its operations."""
    pair = _pair_of_flow(pair_flow)
    away = sender != receiver
    bundle = np.concatenate([np.flatnonzero(away), pair[routes.parent]])
    ends = np.concatenate(
        [
            np.stack([sender[away], receiver[away]], axis=1),
            np.stack([routes.forwards.sender, routes.forwards.receiver], axis=1),
        ]
    )
    distinct = np.unique(ends, axis=0)
    if np.bincount(distinct.reshape(-1), minlength=1).max() <= limits.max_operations:
        return np.zeros(len(sender), dtype=np.int64)
    per_bundle = np.unique(np.concatenate([bundle[:, None], ends], axis=1), axis=0)
    starts = np.searchsorted(per_bundle[:, 0], np.arange(len(sender) + 1))
    window = np.zeros(len(sender), dtype=np.int64)
    counts = np.zeros((1, num_endpoints), dtype=np.int64)
    for p in range(len(sender)):
        operations = np.bincount(
            per_bundle[starts[p] : starts[p + 1], 1:].reshape(-1), minlength=num_endpoints
        )
        used = np.flatnonzero(operations)
        if not len(used):
            continue
        if operations.max() > limits.max_operations:
            raise InvalidInput.at(
                "limits.max_operations",
                f"is {limits.max_operations}; raise it to {operations.max()}, or one process "
                "cannot pass on what it receives",
            )
        fits = (counts[:, used] + operations[used] <= limits.max_operations).all(axis=1)
        if not fits.any():
            counts = np.concatenate([counts, np.zeros((1, num_endpoints), dtype=np.int64)])
            fits = np.append(fits, True)
        window[p] = int(np.argmax(fits))
        counts[window[p], used] += operations[used]
    return window
