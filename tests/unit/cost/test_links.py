"""Collectives against measured tables and against each other."""

import csv

import numpy as np
import pytest

from realloc.cost.hardware import hardware_of
from realloc.cost.links import (
    Group,
    all_gather_seconds,
    all_reduce_seconds,
    group_of,
    message_seconds,
)
from tests.support.measured_data import measured_file

A100 = hardware_of("A100-80")


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_all_reduce_matches_nccl_tables(ranks: int) -> None:
    """One link bandwidth and one cost per byte explain the tables of 2, 4 and 8 ranks to 4 %."""
    path = measured_file(f"a100_allreduce_{ranks}gpus.csv")
    with path.open() as file:
        rows = [(float(row[0]), float(row[3]) * 1e-9) for row in list(csv.reader(file))[1:]]
    errors = [
        all_reduce_seconds(Group(size=ranks), size, A100) / seconds - 1 for size, seconds in rows
    ]
    assert float(np.abs(errors).mean()) < 0.04


def test_a_lone_rank_reduces_for_nothing() -> None:
    """A group of one moves nothing."""
    assert all_reduce_seconds(Group(size=1), 1e9, A100) == 0.0


def test_groups_know_their_nodes() -> None:
    """Tensor ranks are neighbours; data ranks are a tensor group apart."""
    assert group_of(8, 1, A100) == Group(size=8, num_nodes=1, groups_per_node=1)
    assert group_of(8, 4, A100) == Group(size=8, num_nodes=4, groups_per_node=4)
    assert group_of(16, 8, A100) == Group(size=16, num_nodes=16, groups_per_node=8)
    assert group_of(16, 1, A100) == Group(size=16, num_nodes=2, groups_per_node=1)


def test_groups_of_a_node_share_its_network() -> None:
    """Eight groups at once get an eighth each of what one group gets."""
    alone = all_reduce_seconds(Group(size=16, num_nodes=16, groups_per_node=1), 8e9, A100)
    eight = all_reduce_seconds(Group(size=16, num_nodes=16, groups_per_node=8), 8e9, A100)
    network = 2 * 15 / 16 * 8e9 / (0.8 * 200e9)
    assert eight - alone == pytest.approx(7 * network, rel=1e-6)


def test_gathering_is_half_of_reducing() -> None:
    """An all-reduce is a reduce-scatter and an all-gather."""
    group = Group(size=8)
    assert 2 * all_gather_seconds(group, 1e8, A100) == all_reduce_seconds(group, 1e8, A100)


def test_messages_between_nodes_are_slower() -> None:
    """A device's share of the network is less than its node link."""
    inside = message_seconds(1e8, crosses_nodes=False, hardware=A100)
    across = message_seconds(1e8, crosses_nodes=True, hardware=A100)
    assert across > 5 * inside
