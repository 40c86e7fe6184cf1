"""Devices, nodes and device meshes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from realloc.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DeviceMesh:
    """A contiguous range of device ids: 2^k aligned ones of a node, or whole nodes."""

    first_device: int
    num_devices: int

    def __post_init__(self) -> None:
        if self.first_device < 0:
            raise InvalidInput.at("first_device", f"is {self.first_device}; devices count from 0")
        if self.num_devices < 1:
            raise InvalidInput.at("num_devices", f"is {self.num_devices} and must be at least 1")

    @property
    def devices(self) -> range:
        return range(self.first_device, self.first_device + self.num_devices)

    def overlaps(self, other: "DeviceMesh") -> bool:
        """True where some device belongs to both."""
        return (
            self.first_device < other.first_device + other.num_devices
            and other.first_device < self.first_device + self.num_devices
        )

    def __str__(self) -> str:
        last = self.first_device + self.num_devices - 1
        return str(last) if self.num_devices == 1 else f"{self.first_device}-{last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of equal size; device ids count node by node."""

    num_nodes: int
    devices_per_node: int
    device_kind: str
    """Name of the hardware, a key of the cost model's presets: ``cpu``, ``H100``."""
    device_memory_bytes: int
    network_gigabits: float = 0.0
    """Gb/s of a node's network; 0 takes what is usual for the hardware."""

    def __post_init__(self) -> None:
        for name in ("num_nodes", "devices_per_node", "device_memory_bytes"):
            if getattr(self, name) < 1:
                raise InvalidInput.at(name, f"is {getattr(self, name)} and must be at least 1")

    @property
    def num_devices(self) -> int:
        return self.num_nodes * self.devices_per_node

    def node_of(self, device: int) -> int:
        """Index of the node that holds a device."""
        return device // self.devices_per_node

    def meshes(self) -> tuple[DeviceMesh, ...]:
        """Every legal mesh: aligned 2^k groups within a node, then runs of whole nodes."""
        found = []
        size = 1
        while size < self.devices_per_node:
            for node in range(self.num_nodes):
                for offset in range(0, self.devices_per_node - size + 1, size):
                    first = node * self.devices_per_node + offset
                    found.append(DeviceMesh(first_device=first, num_devices=size))
            size *= 2
        for nodes in range(1, self.num_nodes + 1):
            for node in range(self.num_nodes - nodes + 1):
                found.append(
                    DeviceMesh(
                        first_device=node * self.devices_per_node,
                        num_devices=nodes * self.devices_per_node,
                    )
                )
        return tuple(found)


def to_labels(cluster: Cluster) -> dict[str, str]:
    """A cluster as the labels under which its scheduler registers."""
    return {f"cluster/{field.name}": str(getattr(cluster, field.name)) for field in fields(cluster)}


def from_labels(labels: Mapping[str, str]) -> Cluster:
    """The opposite of `to_labels`.

    Raises:
        InvalidInput: a label is missing or no number.
    """
    try:
        return Cluster(
            num_nodes=int(labels["cluster/num_nodes"]),
            devices_per_node=int(labels["cluster/devices_per_node"]),
            device_kind=labels["cluster/device_kind"],
            device_memory_bytes=int(labels["cluster/device_memory_bytes"]),
            network_gigabits=float(labels["cluster/network_gigabits"]),
        )
    except (KeyError, ValueError) as error:
        raise InvalidInput.at("labels", f"do not describe a cluster: {error}") from None
