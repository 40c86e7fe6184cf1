"""What a plan moves, next to the least that any plan could move."""

import numpy as np

from realloc.core.transfer import Int64, Traffic
from realloc.reallocation.flows import Flows, Routes
from realloc.reallocation.lines import Lines
from realloc.reallocation.sides import Side


def traffic_of(
    lines: Lines, source: Side, destination: Side, routes: Routes, element_bytes: int
) -> Traffic:
    """Count the bytes of all flows, and work out the bounds from the lines alone."""
    direct = _Ends(routes.direct, source, destination)
    passed = _Ends(routes.forwards, destination, destination)
    devices = int(max(source.device.max(), destination.device.max())) + 1
    network = _Busiest(direct.sent(devices, direct.far), direct.received(devices, direct.far))
    near = direct.away & ~direct.far
    inside = _Busiest(
        direct.sent(devices, near) + passed.sent(devices, passed.away),
        direct.received(devices, near) + passed.received(devices, passed.away),
    )
    device_bound, node_bound = _bounds(lines, source, destination)
    total, cross_node = direct.total() + passed.total(), network.total
    cross_device = cross_node + inside.total
    same_process = int(direct.sizes[routes.direct.sender == routes.direct.receiver].sum())
    slowest = network if cross_node else inside
    bounds = routes.bounds
    b = element_bytes
    return Traffic(
        total_bytes=total * b,
        local_bytes=(total - cross_device) * b,
        cross_process_bytes=(total - same_process) * b,
        cross_device_bytes=cross_device * b,
        cross_device_bound=device_bound * b,
        cross_node_bytes=cross_node * b,
        cross_node_bound=node_bound * b,
        busiest_send_bytes=slowest.send * b,
        busiest_receive_bytes=slowest.receive * b,
        busiest_send_bound=(bounds.network_send if cross_node else bounds.inside_send) * b,
        # Within one node there is nothing to choose about what a device receives.
        busiest_receive_bound=(bounds.network_receive if cross_node else inside.receive) * b,
        inside_send_bytes=inside.send * b,
        inside_send_bound=bounds.inside_send * b,
    )


class _Busiest:
    """The busiest of all links of one kind, each way, and their sum."""

    def __init__(self, sent: Int64, received: Int64) -> None:
        self.send = int(sent.max())
        self.receive = int(received.max())
        self.total = int(sent.sum())


class _Ends:
    """Flows with the devices and nodes at their ends."""

    def __init__(self, flows: Flows, sender: Side, receiver: Side) -> None:
        self.sizes = flows.num_elements
        self._from = sender.device[flows.sender_rank]
        self._to = receiver.device[flows.receiver_rank]
        self.away = self._from != self._to
        self.far = sender.node[flows.sender_rank] != receiver.node[flows.receiver_rank]

    def total(self) -> int:
        return int(self.sizes.sum())

    def sent(self, devices: int, where: Int64) -> Int64:
        return _sums(self._from[where], self.sizes[where], devices)

    def received(self, devices: int, where: Int64) -> Int64:
        return _sums(self._to[where], self.sizes[where], devices)


def _sums(index: Int64, sizes: Int64, length: int) -> Int64:
    # float64 sums of integers are exact up to 2^53 elements.
    return np.bincount(index, weights=sizes, minlength=length).astype(np.int64)


def _bounds(lines: Lines, source: Side, destination: Side) -> tuple[int, int]:
    """Elements that must cross devices, and nodes: destinations that hold nothing of a line."""
    devices, nodes = 0, 0
    device_of, node_of = destination.device.tolist(), destination.node.tolist()
    source_device, source_node = source.device.tolist(), source.node.tolist()
    for line in lines.lines:
        held_devices = {source_device[rank] for rank in line.sources}
        held_nodes = {source_node[rank] for rank in line.sources}
        wanted = {device_of[rank] for rank in line.destinations}
        wanted_nodes = {node_of[rank] for rank in line.destinations}
        devices += line.num_elements * len(wanted - held_devices)
        nodes += line.num_elements * len(wanted_nodes - held_nodes)
    return devices, nodes
