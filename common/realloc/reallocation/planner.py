"""Transfer plans: intersect what is wanted with what is there, pick replicas, make rounds.

``plan_transfer`` works for any two layouts of one model on any devices. ``source_endpoints[r]``
is the process that holds rank ``r`` of the source layout, likewise for the destination. Bytes
between two processes of one device are local traffic; a process that holds both sides sends
messages to itself. Padding is in no block: it stays as it is at the destination.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import (
    Blocks,
    Endpoint,
    Messages,
    Traffic,
    TransferPlan,
    TransferProgram,
)
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from realloc.reallocation.limits import TransferLimits, element_bytes


@dataclass(frozen=True, slots=True)
class _Box:
    """Rectangle of a canonical tensor in a local tensor of a rank."""

    rank: int
    tensor: int
    start: int
    row_stride: int
    row: int
    rows: int
    col: int
    cols: int


def plan_transfer(
    architecture: ModelArchitecture,
    source: Layout,
    destination: Layout,
    *,
    source_endpoints: Sequence[Endpoint],
    destination_endpoints: Sequence[Endpoint],
    dtype: str,
    limits: TransferLimits | None = None,
) -> TransferPlan:
    """Plan how the destination layout gets the source layout's weights.

    Args:
        dtype: element type on the way, ``float32`` or ``bfloat16``.

    Raises:
        InvalidInput: a layout does not fit the model, or the endpoints do not fit a layout.
    """
    limits = limits or TransferLimits()
    size = element_bytes(dtype)
    canonical = canonical_tensors(architecture)
    endpoints = tuple(dict.fromkeys((*source_endpoints, *destination_endpoints)))
    number = {endpoint: index for index, endpoint in enumerate(endpoints)}
    sources = [local_parameters(architecture, source, r) for r in range(len(source.devices))]
    targets = [
        local_parameters(architecture, destination, r) for r in range(len(destination.devices))
    ]
    cols = [tensor.cols for tensor in canonical]
    have, want = _boxes(sources, cols), _boxes(targets, cols)
    load = [0] * len(endpoints)
    pairs: dict[tuple[int, int], list[tuple[int, int, list[int], list[int]]]] = defaultdict(list)
    for tensor in range(len(canonical)):
        for box in want[tensor]:
            receiver = destination_endpoints[box.rank]
            for row, rows, col, width in _atoms(box, have[tensor]):
                holders = [
                    held
                    for held in have[tensor]
                    if held.row <= row
                    and row + rows <= held.row + held.rows
                    and held.col <= col
                    and col + width <= held.col + held.cols
                ]

                def distance(held: _Box, receiver: Endpoint = receiver) -> tuple[int, int]:
                    sender = source_endpoints[held.rank]
                    far = 3 - (
                        (sender == receiver)
                        + (sender.device == receiver.device)
                        + (sender.node == receiver.node)
                    )
                    return far, load[number[sender]]

                held = min(holders, key=distance)
                sender = source_endpoints[held.rank]
                load[number[sender]] += rows * width * size
                send = [held.tensor, _at(held, row, col), rows, width, held.row_stride]
                receive = [box.tensor, _at(box, row, col), rows, width, box.row_stride]
                place = [tensor, row * cols[tensor] + col, cols[tensor]]
                pairs[number[sender], number[receiver]].append(
                    (rows, width, send + place, receive + place)
                )
    return _assemble(
        endpoints,
        pairs,
        {number[endpoint]: sources[r] for r, endpoint in enumerate(source_endpoints)},
        {number[endpoint]: targets[r] for r, endpoint in enumerate(destination_endpoints)},
        tuple(tensor.name for tensor in canonical),
        dtype,
        limits,
    )


def _at(box: _Box, row: int, col: int) -> int:
    return box.start + (row - box.row) * box.row_stride + col - box.col


def _boxes(ranks: list[RankLayout], cols: list[int]) -> list[list[_Box]]:
    found: list[list[_Box]] = [[] for _ in cols]
    for rank, layout in enumerate(ranks):
        b = layout.blocks
        for i in range(len(b)):
            c = int(b.canonical[i])
            row, col = divmod(int(b.canonical_start[i]), cols[c])
            rows, width, stride = int(b.rows[i]), int(b.cols[i]), int(b.row_stride[i])
            if rows == 1 and col == 0 and width % cols[c] == 0:
                rows, width, stride = width // cols[c], cols[c], cols[c]
            found[c].append(
                _Box(rank, int(b.tensor[i]), int(b.start[i]), stride, row, rows, col, width)
            )
    return found


def _atoms(box: _Box, held: list[_Box]) -> list[tuple[int, int, int, int]]:
    rows = _cuts(box.row, box.rows, [(h.row, h.rows) for h in held])
    cols = _cuts(box.col, box.cols, [(h.col, h.cols) for h in held])
    return [
        (r0, r1 - r0, c0, c1 - c0)
        for r0, r1 in itertools.pairwise(rows)
        for c0, c1 in itertools.pairwise(cols)
    ]


def _cuts(first: int, extent: int, others: list[tuple[int, int]]) -> list[int]:
    last = first + extent
    ends = {first, last, *(p for begin, size in others for p in (begin, begin + size))}
    return sorted(p for p in ends if first <= p <= last)


def _assemble(
    endpoints: tuple[Endpoint, ...],
    pairs: dict[tuple[int, int], list[tuple[int, int, list[int], list[int]]]],
    sources: dict[int, RankLayout],
    targets: dict[int, RankLayout],
    names: tuple[str, ...],
    dtype: str,
    limits: TransferLimits,
) -> TransferPlan:
    size = element_bytes(dtype)
    limit = limits.max_message_bytes // size
    messages: list[tuple[int, int, list[list[int]], list[list[int]], int]] = []
    for (sender, receiver), blocks in pairs.items():
        open_send: list[list[int]] = []
        open_receive: list[list[int]] = []
        total = 0
        for rows, width, send, receive in blocks:
            step = max(1, limit // width) if rows > 1 else rows
            for first in range(0, rows, step):
                part = min(step, rows - first)
                if total and total + part * width > limit:
                    messages.append((sender, receiver, open_send, open_receive, total))
                    open_send, open_receive, total = [], [], 0
                open_send.append(_shift(send, first, part))
                open_receive.append(_shift(receive, first, part))
                total += part * width
        if total:
            messages.append((sender, receiver, open_send, open_receive, total))
    rounds: list[int] = []
    sent: dict[tuple[int, int], int] = defaultdict(int)
    received: dict[tuple[int, int], int] = defaultdict(int)
    operations: dict[tuple[int, int], int] = defaultdict(int)
    last: dict[tuple[int, int], int] = defaultdict(int)
    for sender, receiver, _, _, elements in messages:
        k = last[sender, receiver]
        while (
            (sent[sender, k] and (sent[sender, k] + elements) * size > limits.staging_bytes)
            or (
                received[receiver, k]
                and (received[receiver, k] + elements) * size > limits.staging_bytes
            )
            or max(operations[sender, k], operations[receiver, k]) >= limits.max_operations
        ):
            k += 1
        sent[sender, k] += elements
        received[receiver, k] += elements
        operations[sender, k] += 1
        operations[receiver, k] += 1
        last[sender, receiver] = k
        rounds.append(k)
    order = sorted(range(len(messages)), key=lambda m: rounds[m])
    num_rounds = max(rounds, default=-1) + 1
    programs = []
    for e in range(len(endpoints)):
        sends = [m for m in order if messages[m][0] == e]
        receives = [m for m in order if messages[m][1] == e]
        programs.append(
            TransferProgram(
                endpoint=e,
                source_tensors=_names(sources.get(e)),
                destination_tensors=_names(targets.get(e)),
                sends=_messages(
                    [messages[m][1] for m in sends],
                    [rounds[m] for m in sends],
                    [messages[m][2] for m in sends],
                ),
                receives=_messages(
                    [messages[m][0] for m in receives],
                    [rounds[m] for m in receives],
                    [messages[m][3] for m in receives],
                ),
                num_rounds=num_rounds,
            )
        )
    total_bytes = sum(m[4] for m in messages) * size
    local = sum(m[4] for m in messages if endpoints[m[0]].device == endpoints[m[1]].device) * size
    node = sum(m[4] for m in messages if endpoints[m[0]].node != endpoints[m[1]].node) * size
    out: dict[int, int] = defaultdict(int)
    into: dict[int, int] = defaultdict(int)
    for sender, receiver, _, _, elements in messages:
        if endpoints[sender].device != endpoints[receiver].device:
            out[endpoints[sender].device] += elements * size
            into[endpoints[receiver].device] += elements * size
    return TransferPlan(
        endpoints=endpoints,
        canonical_tensors=names,
        dtype=dtype,
        programs=tuple(programs),
        traffic=Traffic(
            total_bytes=total_bytes,
            local_bytes=local,
            cross_device_bytes=total_bytes - local,
            cross_device_bound=total_bytes - local,
            cross_node_bytes=node,
            cross_node_bound=node,
            busiest_send_bytes=max(out.values(), default=0),
            busiest_receive_bytes=max(into.values(), default=0),
            busiest_send_bound=0,
            busiest_receive_bound=max(into.values(), default=0),
        ),
    )


def _names(layout: RankLayout | None) -> tuple[str, ...]:
    return tuple(p.name for p in layout.parameters) if layout else ()


def _shift(block: list[int], first: int, rows: int) -> list[int]:
    tensor, start, _, width, stride, canonical, canonical_start, canonical_stride = block
    return [
        tensor,
        start + first * stride,
        rows,
        width,
        stride,
        canonical,
        canonical_start + first * canonical_stride,
        canonical_stride,
    ]


def _messages(peers: list[int], rounds: list[int], blocks: list[list[list[int]]]) -> Messages:
    columns = np.array([b for message in blocks for b in message], dtype=np.int64).reshape(-1, 8).T
    return Messages(
        peer=np.array(peers, dtype=np.int32),
        round=np.array(rounds, dtype=np.int32),
        first_block=np.cumsum([0, *map(len, blocks)], dtype=np.int64),
        blocks=Blocks(
            tensor=columns[0].astype(np.int32),
            start=columns[1].copy(),
            rows=columns[2].copy(),
            cols=columns[3].copy(),
            row_stride=columns[4].copy(),
            canonical=columns[5].astype(np.int32),
            canonical_start=columns[6].copy(),
            canonical_stride=columns[7].copy(),
        ),
    )
