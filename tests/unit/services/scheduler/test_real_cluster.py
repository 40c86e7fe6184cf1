"""The planner's cluster is the one that shards describe."""

import pytest

from realloc.coordination.membership import Member
from realloc.core.errors import InvalidInput
from realloc.core.mesh import Cluster
from realloc.cost.hardware import GIGABIT, hardware_of
from services.scheduler.real_cluster import real_cluster

CONFIGURED = Cluster(
    num_nodes=2, devices_per_node=2, device_kind="H100", device_memory_bytes=80 << 30
)


def trainer(device: int, node: int, **labels: str) -> Member:
    return Member(
        kind="trainer",
        name=f"trainer-{device}",
        address="10.0.0.1:7100",
        incarnation="1",
        host="host",
        device=device,
        node=node,
        labels=labels,
    )


def test_memory_is_that_of_the_smallest_device():
    """A smaller device lowers what plans may use; a larger one does not raise it."""
    members = [trainer(0, 0, memory_bytes=str(79 << 30)), trainer(1, 0, memory_bytes=str(90 << 30))]
    assert real_cluster(CONFIGURED, members).device_memory_bytes == 79 << 30
    assert real_cluster(CONFIGURED, members[1:]).device_memory_bytes == 80 << 30


def test_the_network_is_the_sum_of_a_nodes_ports_each_counted_once():
    """Two devices that share a port share its bandwidth; the poorest node counts."""
    members = [
        trainer(0, 0, port="mlx5_0", port_gigabits="400"),
        trainer(1, 0, port="mlx5_1", port_gigabits="400"),
        trainer(2, 1, port="mlx5_0", port_gigabits="400"),
        trainer(3, 1, port="mlx5_0", port_gigabits="400"),
    ]
    assert real_cluster(CONFIGURED, members[:2]).network_gigabits == 800
    found = real_cluster(CONFIGURED, members)
    assert found.network_gigabits == 400
    assert (
        hardware_of(found.device_kind).in_cluster(found).network.bytes_per_second == 400 * GIGABIT
    )


def test_shards_that_say_nothing_leave_the_configuration():
    """On machines without GPUs the cluster is as configured, with the usual network."""
    found = real_cluster(CONFIGURED, [trainer(0, 0), trainer(3, 1)])
    assert found == CONFIGURED
    usual = hardware_of("H100").network
    assert hardware_of(found.device_kind).in_cluster(found).network == usual


def test_a_device_in_another_node_than_planned_is_refused():
    """All misplaced shards are named, with what to set."""
    with pytest.raises(InvalidInput) as caught:
        real_cluster(CONFIGURED, [trainer(1, 1), trainer(2, 1), trainer(4, 2)])
    said = str(caught.value)
    assert "trainer-1" in said
    assert "in node 0" in said
    assert "trainer-4" in said
    assert "raise num_nodes" in said
    assert "trainer-2" not in said
