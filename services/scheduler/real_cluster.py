"""The cluster as its shards describe themselves, which is what plans are made for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from realloc.coordination.membership import Member
from realloc.core.errors import Problem, raise_problems
from realloc.core.mesh import Cluster
from realloc.cost.hardware import NETWORK_GIGABITS


def real_cluster(configured: Cluster, trainers: Sequence[Member]) -> Cluster:
    """The configured cluster with the memory and network that its devices really have.

    A device has at most the configured memory, and as much as the smallest one. A node's network
    is the sum of the ports of its devices, each counted once; the cluster's is that of the node
    with the least. What shards do not say, machines without GPUs, stays as configured.

    Raises:
        InvalidInput: a shard lives on another node than the planner would take it for, so that
            what it believes to be NVLink is the network, or the other way round.
    """
    raise_problems(_misplaced(configured, trainers))
    memory = [int(member.labels["memory_bytes"]) for member in trainers if _says_memory(member)]
    return replace(
        configured,
        device_memory_bytes=min([configured.device_memory_bytes, *memory]),
        network_gigabits=_network_gigabits(configured, trainers),
    )


def _says_memory(member: Member) -> bool:
    return member.labels.get("memory_bytes", "").isdecimal()


def _misplaced(configured: Cluster, trainers: Sequence[Member]) -> Iterator[Problem]:
    for member in trainers:
        if member.device is None or member.node is None:
            continue
        if member.device >= configured.num_devices:
            yield Problem(
                member.name,
                f"owns device {member.device}, and the scheduler is configured for "
                f"{configured.num_devices}; raise num_nodes or devices_per_node",
            )
        elif member.node != configured.node_of(member.device):
            yield Problem(
                member.name,
                f"says that device {member.device} is in node {member.node}; with "
                f"{configured.devices_per_node} devices per node it is in node "
                f"{configured.node_of(member.device)}: set devices_per_node of the scheduler",
            )


def _network_gigabits(configured: Cluster, trainers: Sequence[Member]) -> float:
    ports: dict[int, dict[str, float]] = {}
    for member in trainers:
        try:
            gigabits = float(member.labels["port_gigabits"])
        except (KeyError, ValueError):
            continue
        ports.setdefault(member.node or 0, {})[member.labels.get("port", "")] = gigabits
    if not ports:
        return configured.network_gigabits
    least = min(sum(of_node.values()) for of_node in ports.values())
    low, high = NETWORK_GIGABITS
    return min(max(least, low), high)
