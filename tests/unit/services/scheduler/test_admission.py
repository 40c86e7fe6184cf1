"""What is refused before a job is queued: folders, and models that would be trained wrongly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"model_type": "llama", "attention_bias": True},
    ],
)
def test_models_that_the_trainer_computes_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """By the key of their configuration."""
    write_task(tmp_path)
    job = experiment(tmp_path, "ppo")
    path = Path(job.actor.checkpoint) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InvalidInput, match=f"config.json: {[*changes][-1][:5]}.*the trainer knows"):
        admit(job, CLUSTER, reward_roots=[Path("/")])


def test_models_with_scaled_positions_that_the_trainer_knows_are_taken(tmp_path: Path) -> None:
    """Llama 3's scaling."""
    write_task(tmp_path)
    job = experiment(tmp_path, "ppo")
    path = Path(job.actor.checkpoint) / "config.json"
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_scaling": scaling}))
    assert admit(job, CLUSTER, reward_roots=[Path("/")])
