"""Layouts and plans as text that people read and golden files keep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Blocks, Endpoint, Messages, Traffic, TransferPlan
from realloc.reallocation.families import canonical_names
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from realloc.reallocation.limits import element_bytes


def describe_layout(architecture: ModelArchitecture, layout: Layout, rank: int) -> str:
    """What one rank stores, a line per parameter: its shape and what is in it."""
    table = local_parameters(architecture, layout, rank)
    names = canonical_names(architecture)
    lines = [f"{layout.kind.value}:{layout.strategy} rank {rank} on device {layout.devices[rank]}"]
    for index, parameter in enumerate(table.parameters):
        shape = "×".join(map(str, parameter.shape))
        lines.append(f"  {parameter.name} [{shape}]")
        lines += [f"    {content}" for content in _contents(table, index, names)]
    return "\n".join(lines)


def describe_traffic(traffic: Traffic) -> str:
    """The figures of a plan, each beside its bound."""
    return "\n".join(
        (
            f"bytes written {traffic.total_bytes}, from the same device {traffic.local_bytes}, "
            f"from another process {traffic.cross_process_bytes}",
            f"across devices {traffic.cross_device_bytes} (bound {traffic.cross_device_bound}), "
            f"across nodes {traffic.cross_node_bytes} (bound {traffic.cross_node_bound})",
            f"busiest link out {traffic.busiest_send_bytes} (bound {traffic.busiest_send_bound}), "
            f"in {traffic.busiest_receive_bytes} (bound {traffic.busiest_receive_bound}), "
            f"inside a node {traffic.inside_send_bytes} (bound {traffic.inside_send_bound})",
        )
    )


def describe_plan(plan: TransferPlan) -> str:
    """Everything that every process does, a line per message and per block."""
    programs = list(plan.programs)
    rounds = max((program.num_rounds for program in programs), default=0)
    lines = [f"{plan.dtype}, {len(programs)} processes, {rounds} rounds"]
    lines += describe_traffic(plan.traffic).splitlines()
    size = element_bytes(plan.dtype)
    for program in programs:
        endpoint = plan.endpoints[program.endpoint]
        lines.append(f"{endpoint.name} on device {endpoint.device} of node {endpoint.node}")
        held = program.source_tensors + program.destination_tensors
        for arrow, messages, tensors in (
            ("→", program.sends, held),
            ("←", program.receives, program.destination_tensors),
        ):
            lines += _describe_messages(arrow, messages, tensors, plan.endpoints, size)
    return "\n".join(lines)


def describe_difference(plan: TransferPlan) -> str:
    """What moves, a line per receiving process: from itself, its device, its node, from afar."""
    lines = describe_traffic(plan.traffic).splitlines()
    for receipt in receipts(plan):
        parts = ", ".join(
            f"{count} from {kind}" for kind, count in receipt.bytes_from.items() if count
        )
        name = plan.endpoints[receipt.endpoint].name
        lines.append(f"{name}: {parts} ({receipt.num_senders} senders)")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one process receives in a plan."""

    endpoint: int
    bytes_from: Mapping[str, int]
    """Bytes from itself, its device, its node, other nodes."""
    num_senders: int


def receipts(plan: TransferPlan) -> tuple[Receipt, ...]:
    """What each receiving process gets from how near."""
    size = element_bytes(plan.dtype)
    found = []
    for program in plan.programs:
        here = plan.endpoints[program.endpoint]
        ends = np.cumsum(program.receives.blocks.rows * program.receives.blocks.cols)
        elements = np.diff(np.concatenate([[0], ends])[program.receives.first_block])
        peers = program.receives.peer.tolist()
        kinds = dict.fromkeys(_KINDS, 0)
        for peer, count in zip(peers, elements.tolist(), strict=True):
            kinds[_kind(plan.endpoints[peer], here)] += count * size
        if peers:
            found.append(
                Receipt(endpoint=program.endpoint, bytes_from=kinds, num_senders=len(set(peers)))
            )
    return tuple(found)


_KINDS = ("itself", "its device", "its node", "other nodes")


def _kind(sender: Endpoint, receiver: Endpoint) -> str:
    if sender == receiver:
        return _KINDS[0]
    if sender.device == receiver.device:
        return _KINDS[1]
    return _KINDS[2] if sender.node == receiver.node else _KINDS[3]


def _describe_messages(
    arrow: str,
    messages: Messages,
    tensors: tuple[str, ...],
    endpoints: tuple[Endpoint, ...],
    size: int,
) -> Iterator[str]:
    for message, peer in enumerate(messages.peer):
        first, last = messages.first_block[message : message + 2]
        blocks = messages.blocks.take(slice(first, last))
        yield (
            f"  round {messages.round[message]} {arrow} {endpoints[peer].name}: "
            f"{blocks.num_elements * size} bytes"
        )
        for block in range(len(blocks)):
            yield f"    {tensors[blocks.tensor[block]]} {_local(blocks, block)}"


def _local(blocks: Blocks, block: int) -> str:
    start, rows, cols = (int(of[block]) for of in (blocks.start, blocks.rows, blocks.cols))
    if rows == 1:
        return f"{start}…{start + cols}"
    return f"{start} + {rows} × {cols} every {blocks.row_stride[block]}"


def _contents(table: RankLayout, parameter: int, names: tuple[str, ...]) -> Iterator[str]:
    blocks = table.blocks
    for block in (blocks.tensor == parameter).nonzero()[0]:
        start, stride = int(blocks.canonical_start[block]), int(blocks.canonical_stride[block])
        rows, cols = int(blocks.rows[block]), int(blocks.cols[block])
        of = f"{start}…{start + cols}" if rows == 1 else f"{start} + {rows} × {cols} every {stride}"
        yield f"{_local(blocks, int(block))} = {names[blocks.canonical[block]]} {of}"
