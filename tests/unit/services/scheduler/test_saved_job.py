"""A checkpoint says which job wrote it, and fits only experiments that give the same numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CheckpointSettings, Experiment
from realloc.core.job import Evaluation, Job, Wanted
from realloc.core.mesh import Cluster
from services.scheduler.admission import Admission, admit
from services.scheduler.saved_job import check_same_job, newest_saved_job
from tests.support.running_cluster import experiment, write_task
from tests.support.saved_jobs import report, save_job

CLUSTER = Cluster(num_nodes=1, devices_per_node=2, device_kind="cpu", device_memory_bytes=4 << 30)


def admitted(work: Experiment) -> Admission:
    return admit(work, CLUSTER, reward_roots=[Path("/")])


@pytest.fixture
def work(tmp_path: Path) -> Experiment:
    write_task(tmp_path)
    return experiment(tmp_path, "ppo", checkpoint={"folder": str(tmp_path / "state")})


def save(work: Experiment, **fields: Any) -> Job:
    return save_job(admitted(work), **fields)


def test_the_job_and_its_reports_come_back(work: Experiment) -> None:
    """Every field of the job, and every report, as they were."""
    evaluation = Evaluation(iteration=0, reward=0.25, num_prompts=4, weight_version=0)
    job = save(work, evaluations=(evaluation,), wanted=Wanted.PAUSE, submit_time=12.5)
    saved = newest_saved_job(work.checkpoint.folder, "folder")
    assert saved.job == job
    assert saved.reports == (report(),)
    assert saved.checkpoint.manifest.iteration == 1


def differences(work: Experiment, saved: Experiment) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        check_same_job(admitted(work), newest_saved_job(saved.checkpoint.folder, "folder"))
    return sorted(str(problem) for problem in caught.value.problems)


def test_what_does_not_change_the_numbers_may_differ(work: Experiment) -> None:
    """Longer, elsewhere, checked more often: still the same training."""
    save(work)
    changed = replace(
        work,
        name="other",
        iterations=99,
        pins=(),
        evaluation=None,
        output="/tmp/other",
        call_timeout_seconds=1.0,
        checkpoint=CheckpointSettings(folder=work.checkpoint.folder, every=1),
    )
    check_same_job(admitted(changed), newest_saved_job(work.checkpoint.folder, "folder"))


def test_every_field_that_changes_the_numbers_is_named(work: Experiment) -> None:
    """Both values are told, however deep the field lies."""
    save(work)
    changed = replace(
        work,
        seed=8,
        ppo=replace(work.ppo, gamma=0.5),
        data=replace(work.data, batch_size=8),
        critic=work.actor,
    )
    found = differences(changed, work)
    assert found[1:] == [
        "data.batch_size: is 8 and was 16 in the checkpoint",
        "ppo.gamma: is 0.5 and was 1.0 in the checkpoint",
        "seed: is 8 and was 7 in the checkpoint",
    ]
    assert found[0].startswith("critic: is {'checkpoint'")


def test_files_that_changed_under_the_same_name_are_named(work: Experiment, tmp_path: Path) -> None:
    """Another architecture, or another number of rows, is not the same training either."""
    save(work)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 4}))
    with (tmp_path / "train.jsonl").open("a") as data:
        data.write('{"prompt": "1+1=", "completion": "2", "ground_truth": "2"}\n')
    assert differences(work, work) == [
        "actor.checkpoint.num_layers: is 4 and was 2 in the checkpoint",
        "critic.checkpoint.num_layers: is 4 and was 2 in the checkpoint",
        f"data.path: has 65 rows and had 64 when {work.checkpoint.folder}/iteration-00000001 was "
        "written; which rows come next depends on it",
    ]


def test_an_empty_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(InvalidInput, match="has no complete checkpoint: it is empty"):
        newest_saved_job(str(tmp_path), "folder")


def test_a_folder_without_room_is_refused(
    work: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any time is spent, the bytes of the checkpoints are compared with the disk."""
    usage = type("Usage", (), {"free": 3_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InvalidInput, match=r"3 checkpoints of 0\.0 GiB need"):
        admitted(work)
