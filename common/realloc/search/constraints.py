"""What a user fixes before a search, and the meshes that are left."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from realloc.core.errors import Problem, raise_problems
from realloc.core.experiment import CallPin
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.settings import GenerationPlacement, PlacementSettings

_SMALL_CLUSTER_NODES = 4
_ALL_RUNS_NODES = 8
_SHORTEST_RUN = 16
"""Of a large cluster, no run of nodes is shorter than one part in so many, but at its ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConstraints:
    """A part of the plan that is not up to the search."""

    pins: tuple[CallPin, ...] = ()
    placement: PlacementSettings = field(default_factory=PlacementSettings)

    def check(self, cluster: Cluster, calls: tuple[str, ...]) -> None:
        """Raise where the constraints contradict the cluster or each other.

        Raises:
            InvalidInput: all problems at once.
        """
        raise_problems(self._problems(cluster, calls))

    def _problems(self, cluster: Cluster, calls: tuple[str, ...]) -> Iterator[Problem]:
        given = self.placement
        if not 0.0 <= given.headroom < 1.0:
            yield Problem("headroom", f"is {given.headroom:g}; give a share from 0 to below 1")
        if given.max_tensor < 0:
            yield Problem("max_tensor", f"is {given.max_tensor} and must not be negative")
        for node in given.avoided_nodes:
            if not 0 <= node < cluster.num_nodes:
                yield Problem(
                    "avoided_nodes", f"node {node} is none of the {cluster.num_nodes} nodes"
                )
        if len(set(given.avoided_nodes)) >= cluster.num_nodes:
            yield Problem("avoided_nodes", "leaves no node")
        for pin in self.pins:
            if pin.call not in calls:
                known = ", ".join(calls)
                yield Problem(f"pins.{pin.call}", f"is no call of the graph; its calls are {known}")
            for reason in (*self._mesh_problems(pin, cluster), *self._strategy_problems(pin)):
                yield Problem(f"pins.{pin.call}", reason)
        if given.generation is GenerationPlacement.DISJOINT and cluster.num_devices < 2:
            yield Problem("generation", "cannot be disjoint from training on one device")

    def _mesh_problems(self, pin: CallPin, cluster: Cluster) -> Iterator[str]:
        if pin.mesh is None:
            return
        if pin.mesh.devices[-1] >= cluster.num_devices:
            yield f"ends at device {pin.mesh.devices[-1]}; the last is {cluster.num_devices - 1}"
        elif pin.mesh not in cluster.meshes():
            yield (
                f"{pin.mesh} is no mesh: take an aligned power of two of devices in a node, or "
                "whole nodes"
            )
        elif touched := _nodes(pin.mesh, cluster) & set(self.placement.avoided_nodes):
            yield f"uses node {min(touched)}, which is to be avoided"

    def _strategy_problems(self, pin: CallPin) -> Iterator[str]:
        if pin.strategy is None:
            return
        if pin.mesh and pin.strategy.num_ranks != pin.mesh.num_devices:
            yield (
                f"{pin.strategy} has {pin.strategy.num_ranks} ranks and the mesh "
                f"{pin.mesh.num_devices} devices"
            )
        most = self.placement.max_tensor
        if most and pin.strategy.tensor > most:
            yield f"has tensor degree {pin.strategy.tensor} and the most allowed is {most}"

    def meshes(self, cluster: Cluster) -> tuple[DeviceMesh, ...]:
        """Meshes worth trying that touch no avoided node."""
        avoided = set(self.placement.avoided_nodes)
        return tuple(m for m in _worthwhile(cluster) if not _nodes(m, cluster) & avoided)


def _nodes(mesh: DeviceMesh, cluster: Cluster) -> set[int]:
    return set(range(cluster.node_of(mesh.first_device), cluster.node_of(mesh.devices[-1]) + 1))


def _worthwhile(cluster: Cluster) -> Iterator[DeviceMesh]:
    """Every mesh of a small cluster. Of a large one parts of nodes only at its ends, where they
    leave most whole nodes together; of a very large one runs of nodes in eighths and powers of
    two, because plans that differ by one node in twenty differ by little."""
    nodes = cluster.num_nodes
    for mesh in cluster.meshes():
        if mesh.num_devices < cluster.devices_per_node:
            node = cluster.node_of(mesh.first_device)
            if nodes <= _SMALL_CLUSTER_NODES or node in (0, nodes - 1):
                yield mesh
            continue
        first, length = (
            mesh.first_device // cluster.devices_per_node,
            mesh.num_devices // cluster.devices_per_node,
        )
        unit = max(1, nodes // 8)
        in_units = first % unit == 0 and length % unit == 0
        short = length < nodes // _SHORTEST_RUN
        aligned = length & (length - 1) == 0 and first % length == 0 and not short
        if nodes <= _ALL_RUNS_NODES or in_units or aligned or length == nodes:
            yield mesh
