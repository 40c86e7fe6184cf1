"""Links as `realloc doctor` measured them, in place of a preset's.

Time of a message = latency + bytes / bandwidth; the doctor measures both for each pair of
devices, while all other devices talk, too. The median stands for the pairs of a kind.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from realloc.core.errors import InvalidInput
from realloc.cost.hardware import Hardware, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPair:
    """Two devices and what lies between them."""

    devices: tuple[int, int]
    crosses_nodes: bool
    latency_seconds: float
    bytes_per_second: float
    """In one direction."""
    all_reduce_seconds: float
    """Of the table's `message_bytes` over the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTable:
    """All pairs of a cluster."""

    pairs: tuple[MeasuredPair, ...]
    devices_per_node: int
    """Devices that shared a node's network while it was measured."""
    message_bytes: int
    all_reduce_seconds: float
    """Of `message_bytes` over all devices."""
    backend: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``realloc doctor --links`` writes them."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> "LinkTable":
        """The opposite of `to_json`.

        Raises:
            InvalidInput: fields are missing or of another kind.
        """
        try:
            pairs = tuple(
                MeasuredPair(
                    devices=(int(each["devices"][0]), int(each["devices"][1])),
                    crosses_nodes=bool(each["crosses_nodes"]),
                    latency_seconds=float(each["latency_seconds"]),
                    bytes_per_second=float(each["bytes_per_second"]),
                    all_reduce_seconds=float(each["all_reduce_seconds"]),
                )
                for each in data["pairs"]
            )
            return LinkTable(
                pairs=pairs,
                devices_per_node=int(data["devices_per_node"]),
                message_bytes=int(data["message_bytes"]),
                all_reduce_seconds=float(data["all_reduce_seconds"]),
                backend=str(data["backend"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InvalidInput.at(
                "links", f"is not what `realloc doctor --links` writes: {error!r}"
            ) from None


def with_measured_links(hardware: Hardware, table: LinkTable) -> Hardware:
    """The same devices, with the links of a table where it has some of a kind.

    A node's network is what its devices reached together: each pair that crossed nodes had a
    share of it. `network_efficiency` is taken out, for a measurement contains it.
    """
    inside = _fit(pair for pair in table.pairs if not pair.crosses_nodes)
    across = _fit(pair for pair in table.pairs if pair.crosses_nodes)
    if inside is not None:
        per_rank = hardware.node_link.latency_seconds_per_rank
        hardware = replace(hardware, node_link=replace(inside, latency_seconds_per_rank=per_rank))
    if across is not None:
        whole = across.bytes_per_second * table.devices_per_node / hardware.network_efficiency
        network = replace(
            across,
            bytes_per_second=whole,
            latency_seconds_per_rank=hardware.network.latency_seconds_per_rank,
        )
        hardware = replace(hardware, network=network)
    return hardware


def _fit(pairs: Iterable[MeasuredPair]) -> Link | None:
    """The median pair; None where there are none."""
    found = tuple(pairs)
    if not found:
        return None
    return Link(
        bytes_per_second=median(pair.bytes_per_second for pair in found),
        latency_seconds=median(pair.latency_seconds for pair in found),
    )
