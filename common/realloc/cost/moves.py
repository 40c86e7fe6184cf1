"""Seconds of reallocations between all pairs of layouts, by the bytes on the busiest link.

A model is taken as a square of layers × width, which is what its layouts cut: pipeline ranks
hold runs of layers, tensor ranks strips of the width, data ranks copies. Both axes are
continuous here; the transfer planner (`realloc.reallocation`) counts the same tensor by tensor.

- A device receives its part of the destination less what it held in the source.
- A node receives each byte at most once, whatever the copies in it, less what it held; bytes
  then fan out inside (DESIGN section 5).
- Senders share evenly, as the planner's routing makes them.

Seconds are the larger of network and node link, the busier direction of each, and a fixed part
for preparing, verifying and committing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy
from realloc.cost.hardware import Hardware
from realloc.cost.links import network_bytes_per_second

Floats = NDArray[np.float64]

_SAMPLED_NODES = 16
"""Of larger clusters so many nodes, evenly spread, stand for all: runs of nodes repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayout:
    """A strategy on a mesh."""

    mesh: DeviceMesh
    strategy: ParallelStrategy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """What each holder of a layout has of the square, and of all layouts: [L, holders]."""

    low_layer: Floats
    high_layer: Floats
    low_width: Floats
    high_width: Floats

    @property
    def areas(self) -> Floats:
        return (self.high_layer - self.low_layer) * (self.high_width - self.low_width)

    def overlaps(self, other: "_Parts", row: int) -> Floats:
        """[L, holders], what each holder of `self` shares with its own part of a layout."""
        layers = np.minimum(self.high_layer, other.high_layer[row])
        layers -= np.maximum(self.low_layer, other.low_layer[row])
        width = np.minimum(self.high_width, other.high_width[row])
        width -= np.maximum(self.low_width, other.low_width[row])
        shared: Floats = np.clip(layers, 0.0, None) * np.clip(width, 0.0, None)
        return shared


def reallocation_matrix(
    sources: Sequence[int],
    layouts: Sequence[PlacedLayout],
    total_bytes: float,
    num_devices: int,
    hardware: Hardware,
    *,
    fixed_seconds: float | None = None,
) -> Floats:
    """[L, L] seconds from layout to layout.

    Args:
        sources: rows to fill: layouts in which the model trains; other rows are 0.
        total_bytes: of one copy of the weights.
        fixed_seconds: of any reallocation; by default the hardware's call overhead.
    """
    fixed = hardware.call_overhead_seconds if fixed_seconds is None else fixed_seconds
    per_node = min(hardware.devices_per_node, num_devices)
    shown = _shown_devices(num_devices, per_node)
    scale = num_devices / len(shown)
    on_devices = _device_parts(layouts, shown)
    in_nodes = _node_parts(on_devices, per_node)
    device_areas, node_areas = on_devices.areas, in_nodes.areas
    seconds = np.zeros((len(layouts), len(layouts)))
    link, network = hardware.node_link.bytes_per_second, network_bytes_per_second(hardware)
    for source in sources:
        senders = layouts[source].mesh.num_devices
        sending_nodes = max(1, senders // per_node)
        received = device_areas - on_devices.overlaps(on_devices, source)
        entered = node_areas - in_nodes.overlaps(in_nodes, source)
        inside = np.maximum(received.max(axis=1), scale * received.sum(axis=1) / senders)
        across = np.maximum(entered.max(axis=1), scale * entered.sum(axis=1) / sending_nodes)
        seconds[source] = fixed + total_bytes * np.maximum(inside / link, across / network)
        seconds[source, source] = 0.0
    return seconds


def _shown_devices(num_devices: int, per_node: int) -> NDArray[np.int64]:
    """The devices of the nodes that are looked at."""
    nodes = max(1, num_devices // per_node)
    if nodes <= _SAMPLED_NODES:
        return np.arange(num_devices)
    shown = np.unique(np.linspace(0, nodes - 1, _SAMPLED_NODES).round().astype(np.int64))
    devices: NDArray[np.int64] = (shown[:, None] * per_node + np.arange(per_node)).ravel()
    return devices


def _device_parts(layouts: Sequence[PlacedLayout], devices: NDArray[np.int64]) -> _Parts:
    shape = (len(layouts), len(devices))
    low_layer, high_layer = np.zeros(shape), np.zeros(shape)
    low_width, high_width = np.zeros(shape), np.zeros(shape)
    for index, layout in enumerate(layouts):
        strategy, mesh = layout.strategy, layout.mesh
        at = (devices >= mesh.first_device) & (devices < mesh.first_device + mesh.num_devices)
        ranks = devices[at] - mesh.first_device
        stage = ranks // (strategy.num_ranks // strategy.pipeline)
        strip = ranks % strategy.tensor
        low_layer[index, at] = stage / strategy.pipeline
        high_layer[index, at] = (stage + 1) / strategy.pipeline
        low_width[index, at] = strip / strategy.tensor
        high_width[index, at] = (strip + 1) / strategy.tensor
    return _Parts(
        low_layer=low_layer, high_layer=high_layer, low_width=low_width, high_width=high_width
    )


def _node_parts(devices: _Parts, per_node: int) -> _Parts:
    """The hull of a node's devices; ranks are contiguous, so that the hull is their union."""
    held = devices.areas > 0

    def low(values: Floats) -> Floats:
        shown = np.where(held, values, np.inf).reshape(len(values), -1, per_node).min(axis=2)
        return np.where(np.isinf(shown), 0.0, shown)

    def high(values: Floats) -> Floats:
        grouped = np.where(held, values, 0.0).reshape(len(values), -1, per_node)
        largest: Floats = grouped.max(axis=2)
        return largest

    return _Parts(
        low_layer=low(devices.low_layer),
        high_layer=high(devices.high_layer),
        low_width=low(devices.low_width),
        high_width=high(devices.high_width),
    )
