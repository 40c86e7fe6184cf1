"""Fixtures that modules share: one cluster serves all tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.support.running_cluster import RunningCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """etcd, five services, two devices; tests leave it as they found it."""
    with RunningCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
