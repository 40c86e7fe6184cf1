"""One cluster for the tests that kill processes; each leaves it whole."""

from collections.abc import Iterator

import pytest

from tests.support.running_cluster import RunningCluster


@pytest.fixture(scope="session")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster of its own: its processes get killed."""
    with RunningCluster(tmp_path_factory.mktemp("fragile")) as running:
        yield running
