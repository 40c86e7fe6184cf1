"""Folders that jobs may write into are the operator's choice."""

from dataclasses import replace
from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.experiment import Experiment
from realloc.core.mesh import Cluster
from services.scheduler.admission import admit
from tests.support.running_cluster import experiment, write_task

CLUSTER = Cluster(num_nodes=1, devices_per_node=2, device_kind="cpu", device_memory_bytes=4 << 30)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def work(folder: Path, output: Path, saved: Path) -> Experiment:
    write_task(folder)
    found = experiment(folder, "ppo", checkpoint={"folder": str(saved)})
    return replace(found, output=str(output))


def refused(job: Experiment, root: Path) -> list[str]:
    with pytest.raises(InvalidInput, match="outside the folders that jobs may write") as caught:
        admit(job, CLUSTER, reward_roots=[Path("/")], output_roots=[root])
    return [problem.path for problem in caught.value.problems]


def test_folders_below_a_root_are_taken(tmp_path: Path, shared: Path) -> None:
    """Of any root; and where there is none, everywhere."""
    job = work(tmp_path, shared / "out", shared / "deep" / "saved")
    roots = [tmp_path / "elsewhere", shared]
    assert admit(job, CLUSTER, reward_roots=[Path("/")], output_roots=roots)
    assert admit(job, CLUSTER, reward_roots=[Path("/")])


def test_folders_outside_are_refused_by_field(tmp_path: Path, shared: Path) -> None:
    """Also those that only look as if they lay below it."""
    beside = tmp_path / "shared-not"
    climbing = shared / ".." / "saved"
    assert refused(work(tmp_path, beside, climbing), shared) == ["output", "checkpoint.folder"]
    (shared / "link").symlink_to(tmp_path)
    assert refused(work(tmp_path, shared / "out", shared / "link" / "saved"), shared) == [
        "checkpoint.folder"
    ]
