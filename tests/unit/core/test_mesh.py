"""Clusters as labels of a registration."""

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.mesh import Cluster, from_labels, to_labels

CLUSTER = Cluster(
    num_nodes=3,
    devices_per_node=8,
    device_kind="H100",
    device_memory_bytes=80 * 10**9,
    network_gigabits=1600.0,
)


def test_a_cluster_survives_its_labels() -> None:
    """Every field comes back: one that was added and forgotten would be found here."""
    assert from_labels(to_labels(CLUSTER)) == CLUSTER


@pytest.mark.parametrize(
    ("label", "value"), [("cluster/num_nodes", "many"), ("cluster/num_nodes", "0")]
)
def test_labels_of_something_else_are_refused(label: str, value: str) -> None:
    """Not a traceback of a conversion."""
    with pytest.raises(InvalidInput):
        from_labels({**to_labels(CLUSTER), label: value})
    with pytest.raises(InvalidInput, match="cluster/num_nodes"):
        from_labels({})
