"""A Slurm of four virtual nodes for the whole run."""

import os
import pwd
from collections.abc import Iterator

import pytest

from tests.support.running_cluster import write_task
from tests.support.slurm_machine import SlurmMachine
from tools.fetch_slurm import CACHE


def ordinary_user() -> str:
    """Who runs the tests, unless that is root."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmMachine]:
    """Four nodes and the tiny task, all of an ordinary user."""
    if not CACHE.exists():
        pytest.skip("there is no Slurm here; `make test-slurm` fetches one")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # pytest's own folders are closed to others
    write_task(folder)
    with SlurmMachine(folder, user=ordinary_user()) as machine:
        yield machine
