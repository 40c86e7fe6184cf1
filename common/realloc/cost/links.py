"""Seconds of collectives and messages inside a node and between nodes.

A ring all-reduce moves 2 (g − 1) / g of its bytes over each link (Thakur et al., 2005; NCCL
uses the same in its bus bandwidth). Besides, each rank reads, adds and writes what passes,
whatever the size of the group. On 8 A100 with NVSwitch the two terms explain the tables for
2, 4 and 8 ranks with one link bandwidth: 300 GB/s, NVLink's, and 1.8 ps per byte, which is
3.7 passes over the memory.

A ring over several nodes leaves and enters each node once, so that its link there is the
node's network, shared by all groups that reduce at the same time.
"""

from dataclasses import dataclass

from realloc.cost.hardware import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks of a collective, as the links see them."""

    size: int
    """Ranks."""
    num_nodes: int = 1
    """Nodes over which they spread."""
    groups_per_node: int = 1
    """Groups of this kind that reduce at the same time in a node, and share its network."""


def group_of(size: int, stride: int, hardware: Hardware) -> Group:
    """The group of ranks r, r + stride, r + 2 stride, … that starts at a node's first device.

    The stride is the product of the faster axes: 1 for tensor, t for data, t·d for pipeline.
    """
    per_node = hardware.devices_per_node
    inside = max(1, min(size, per_node // stride)) if stride < per_node else 1
    nodes = -(-size // inside)
    return Group(size=size, num_nodes=nodes, groups_per_node=min(stride, per_node))


def all_reduce_seconds(group: Group, size_bytes: float, hardware: Hardware) -> float:
    """Every rank ends with the sum."""
    if group.size <= 1:
        return 0.0
    ring = 2.0 * (group.size - 1) / group.size * size_bytes / _ring_bandwidth(group, hardware)
    memory = hardware.reduction_passes * size_bytes / hardware.memory_bytes_per_second
    return _latency(group, hardware) + ring + memory


def all_gather_seconds(group: Group, size_bytes: float, hardware: Hardware) -> float:
    """Every rank ends with all `size_bytes`; a reduce-scatter of as many takes as long."""
    return 0.5 * all_reduce_seconds(group, size_bytes, hardware)


def all_to_all_seconds(group: Group, size_bytes: float, hardware: Hardware) -> float:
    """Every rank sends its `size_bytes` in equal parts to all ranks."""
    if group.size <= 1:
        return 0.0
    away = size_bytes * (group.size - 1) / group.size
    return _latency(group, hardware) + away / _ring_bandwidth(
        Group(
            size=group.size,
            num_nodes=group.num_nodes,
            # No byte stays on a ring inside the node: every device uses the network.
            groups_per_node=hardware.devices_per_node,
        ),
        hardware,
    )


def message_seconds(
    size_bytes: float, *, crosses_nodes: bool, hardware: Hardware, senders_per_node: int = 0
) -> float:
    """One device to another.

    Args:
        senders_per_node: devices of the node that send to other nodes at once; 0 for all.
    """
    if not crosses_nodes:
        link = hardware.node_link
        return link.latency_seconds + size_bytes / link.bytes_per_second
    share = network_bytes_per_second(hardware) / (senders_per_node or hardware.devices_per_node)
    share = min(share, hardware.node_link.bytes_per_second)
    return hardware.network.latency_seconds + size_bytes / share


def host_copy_seconds(size_bytes: float, hardware: Hardware) -> float:
    """Between a device and the host's memory, while all devices of the node do the same."""
    link = hardware.host_link
    return link.latency_seconds + size_bytes / link.bytes_per_second if size_bytes else 0.0


def network_bytes_per_second(hardware: Hardware) -> float:
    """What a node's network reaches in one direction."""
    return hardware.network_efficiency * hardware.network.bytes_per_second


def _ring_bandwidth(group: Group, hardware: Hardware) -> float:
    inside = hardware.node_link.bytes_per_second
    if group.num_nodes == 1:
        return inside
    return min(inside, network_bytes_per_second(hardware) / group.groups_per_node)


def _latency(group: Group, hardware: Hardware) -> float:
    link = hardware.node_link
    seconds = link.latency_seconds + link.latency_seconds_per_rank * group.size / group.num_nodes
    if group.num_nodes > 1:
        network = hardware.network
        seconds += network.latency_seconds + network.latency_seconds_per_rank * group.num_nodes
    return seconds
