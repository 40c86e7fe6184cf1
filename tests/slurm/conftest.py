"""A Slurm of four virtual nodes for the whole run."""

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_cluster import write_task
from tests.support.slurm_machine import SlurmMachine
from tools.fetch_slurm import CACHE


def ordinary_user() -> str:
    """Who runs the tests, unless that is root."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="session")
def machine() -> Iterator[SlurmMachine]:
    """Four nodes and the tiny task, all of an ordinary user."""
    if not CACHE.exists():
        pytest.skip("there is no Slurm here; `make test-slurm` fetches one")
    # Not in pytest's folder, which every run of pytest by this user closes to the ordinary one.
    with tempfile.TemporaryDirectory(prefix="realloc-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_task(folder)
        with SlurmMachine(folder, user=ordinary_user()) as machine:
            yield machine
