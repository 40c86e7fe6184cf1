"""Jobs that were stopped go on as if they had not been, on a real cluster."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from realloc.client.cli import main
from realloc.client.client import Client, JobHandle
from realloc.coordination.etcd_store import EtcdStore
from realloc.core.checkpoint_folder import MARKER
from realloc.core.errors import Conflict, InvalidInput, JobFailed, NotFound
from realloc.core.experiment import Experiment
from realloc.core.job import IterationReport, Job, JobState
from tests.support.running_cluster import RunningCluster, experiment, numbers

ITERATIONS = 4
WAIT_SECONDS = 400.0


def work(cluster: RunningCluster, folder: Path | None, **changes: Any) -> Experiment:
    """PPO whose KL controller adapts, so that it is part of the state."""
    plain = {
        "iterations": ITERATIONS,
        "ppo": {"mini_batches": 2, "kl_target": 0.01, "kl_horizon": 100},
        "evaluation": {"path": str(cluster.folder / "heldout.jsonl"), "every": 2},
        "checkpoint": {"folder": str(folder), "every": 2} if folder else {},
    }
    return experiment(cluster.folder, "ppo", **{**plain, **changes})


def wait_until(job: JobHandle, done: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done(found := job.get()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(left: Path, right: Path) -> None:
    found, expected = weights(left), weights(right)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture(scope="module")
def straight(
    cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, tuple[IterationReport, ...], Path]:
    """The job that never stops, and saves nothing."""
    output = tmp_path_factory.mktemp("straight") / "model"
    with cluster.client() as client:
        job = client.submit(work(cluster, None, output=str(output)))
        return job.wait(), job.reports(), output


@pytest.fixture(scope="module")
def half(cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the first half of the iterations."""
    folder = tmp_path_factory.mktemp("half") / "checkpoints"
    with cluster.client() as client:
        job = client.submit(work(cluster, folder, iterations=ITERATIONS // 2)).wait()
    assert job.saved is not None
    assert job.saved.iteration == ITERATIONS // 2
    return folder


def copied(half: Path, target: Path) -> Path:
    """A folder of a test's own with the checkpoints of the first half."""
    shutil.copytree(half, target)
    return target


def test_a_paused_job_goes_on_bit_by_bit(
    cluster: RunningCluster, straight: Any, tmp_path: Path
) -> None:
    """Pause and resume by the id: all metrics, evaluations and the final weights are those of
    the job that never stopped."""
    expected, reports, output = straight
    with cluster.client() as client:
        job = client.submit(
            work(cluster, tmp_path / "state", output=str(tmp_path / "model"), iterations=ITERATIONS)
        )
        for update in job.watch():
            if update.report is not None and update.report.iteration == 1:
                job.pause()
        paused = job.get()
        assert paused.state is JobState.PAUSED
        assert paused.saved is not None
        assert 0 < paused.saved.iteration == paused.iteration < ITERATIONS
        ended = client.resume(job.job_id).wait()
        assert numbers(job.reports()) == numbers(reports)
    assert ended.evaluations == expected.evaluations
    assert ended.saved is not None
    assert ended.saved.iteration == ITERATIONS
    assert_equal_weights(tmp_path / "model", output)


def test_an_experiment_goes_on_from_a_folder(
    cluster: RunningCluster, straight: Any, half: Path, tmp_path: Path
) -> None:
    """A longer experiment submitted with resume repeats nothing and gives the same numbers; its
    history is that of both jobs."""
    expected, reports, output = straight
    folder = copied(half, tmp_path / "state")
    with cluster.client() as client:
        job = client.submit(work(cluster, folder, output=str(tmp_path / "model")), resume=True)
        ended = job.wait()
        assert numbers(job.reports()) == numbers(reports)
        seen = [update.report.iteration for update in job.watch() if update.report is not None]
    assert seen == [1, 2, 3, 4]
    assert [each.iteration for each in ended.evaluations] == [0, 2, 4]
    assert ended.evaluations == expected.evaluations
    assert_equal_weights(tmp_path / "model", output)


def test_another_layout_goes_on_with_the_same_numbers(
    cluster: RunningCluster, straight: Any, half: Path, tmp_path: Path
) -> None:
    """Saved under TP2, resumed under DP2 with another layout of generation."""
    _, reports, output = straight
    folder = copied(half, tmp_path / "state")
    pins = {"actor_train": "d2t1p1@0-1", "critic_train": "d1t1p2@0-1", "actor_gen": "d1t1p1@0"}
    with cluster.client() as client:
        job = client.submit(
            work(cluster, folder, output=str(tmp_path / "model"), pins=pins), resume=True
        )
        job.wait()
        found = numbers(job.reports())
    for now, then in zip(found, numbers(reports), strict=True):
        for name, value in then.items():
            if "logprob_abs_diff" not in name:  # itself a rounding error
                assert now[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name
    for name, values in weights(output).items():
        np.testing.assert_allclose(
            weights(tmp_path / "model")[name], values, atol=2e-4, err_msg=name
        )


def test_a_torn_checkpoint_is_passed_over_with_a_warning(
    cluster: RunningCluster, straight: Any, tmp_path: Path
) -> None:
    """The newest one lacks its marker: the job goes on from the one before it and says so."""
    _, reports, _ = straight
    with cluster.client() as client:
        folder = tmp_path / "state"
        settings = {"folder": str(folder), "every": 1}
        client.submit(work(cluster, None, iterations=2, checkpoint=settings)).wait()
        (folder / "iteration-00000002" / MARKER).unlink()
        job = client.submit(work(cluster, None, iterations=3, checkpoint=settings), resume=True)
        for update in job.watch():
            if update.report is not None and update.report.iteration == 2:
                assert "iteration-00000002" in update.job.warning
        assert numbers(job.reports()) == numbers(reports[:3])
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["iteration-00000002", "iteration-00000003"]


def test_a_checkpoint_can_be_asked_for(
    cluster: RunningCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`realloc checkpoint` returns when it is written; draining then pauses the job, and
    `realloc resume` queues it again."""
    address = ["--address", cluster.endpoints["scheduler"]]
    folder = tmp_path / "state"
    settings = {"folder": str(folder), "every": 1000}
    with cluster.client() as client:
        job = client.submit(work(cluster, None, iterations=1000, checkpoint=settings))
        wait_until(job, lambda found: found.iteration > 0)
        assert main([*address, "checkpoint", job.job_id, "--json"]) == 0
        saved = json.loads(capsys.readouterr().out)
        assert (folder / f"iteration-{saved['iteration']:08d}" / MARKER).is_file()
        assert main([*address, "drain", "--json"]) == 0
        drained = json.loads(capsys.readouterr().out)
        (paused,) = drained["paused"]
        assert paused["job_id"] == job.job_id
        assert paused["folder"] == str(folder)
        assert paused["iteration"] > saved["iteration"]
        assert main([*address, "job", "show", job.job_id]) == 0
        assert f"iteration {paused['iteration']}," in capsys.readouterr().out
        assert main([*address, "resume", str(folder), "--json"]) == 0
        resumed = json.loads(capsys.readouterr().out)
        assert resumed == {"job_id": job.job_id, "iteration": paused["iteration"]}
        wait_until(job, lambda found: found.iteration > paused["iteration"])
        assert main([*address, "pause", job.job_id]) == 0
        assert job.cancel().state is JobState.CANCELLED


def refusal(client: Client, wanted: Experiment, *, resume: bool) -> str:
    with pytest.raises((InvalidInput, Conflict)) as caught:
        client.submit(wanted, resume=resume)
    return str(caught.value)


def test_what_does_not_fit_the_checkpoint_is_named_at_submit(
    cluster: RunningCluster, half: Path, tmp_path: Path
) -> None:
    """Every field that would change the numbers is named with both values; a new job does not
    take over a folder by accident."""
    folder = copied(half, tmp_path / "state")
    with cluster.client() as client:
        text = refusal(client, work(cluster, folder), resume=False)
        assert "has checkpoints of job test-ppo-" in text
        assert "up to iteration 2; submit with --resume" in text
        text = refusal(client, work(cluster, folder, seed=8, dtype="bfloat16"), resume=True)
        assert "seed: is 8 and was 7 in the checkpoint" in text
        assert "dtype: is 'bfloat16' and was 'float32' in the checkpoint" in text
        text = refusal(client, work(cluster, None), resume=True)
        assert "checkpoint.folder: is empty" in text
        text = refusal(client, work(cluster, cluster.folder / "train.jsonl"), resume=False)
        assert "cannot be written" in text
        wrong = {"folder": str(tmp_path / "new"), "every": 0, "keep": 0}
        text = refusal(client, work(cluster, None, checkpoint=wrong), resume=False)
        assert "checkpoint.every: is 0" in text
        assert "checkpoint.keep: is 0" in text


def test_verbs_refuse_what_cannot_be(cluster: RunningCluster, tmp_path: Path) -> None:
    """A job without a folder is not paused while it runs; one that succeeded is not resumed; a
    folder serves one job at a time."""
    with cluster.client() as client:
        job = client.submit(work(cluster, None, iterations=1000))
        wait_until(job, lambda found: found.iteration > 0)
        with pytest.raises(Conflict, match="has no checkpoint"):
            job.pause()
        with pytest.raises(Conflict, match="is running; only a stopped job"):
            client.resume(job.job_id)
        waiting = client.submit(work(cluster, tmp_path / "state"))
        assert "is used by job" in refusal(client, work(cluster, tmp_path / "state"), resume=True)
        waiting.pause()
        assert wait_until(waiting, lambda found: found.state.is_at_rest).state is JobState.PAUSED
        job.cancel()
        with pytest.raises(InvalidInput, match="nothing to resume from"):
            client.resume(job.job_id)
        with pytest.raises(JobFailed, match="was paused"):
            waiting.wait()
        ended = client.resume(waiting.job_id).wait()
        assert ended.state is JobState.SUCCEEDED
        with pytest.raises(Conflict, match="has succeeded"):
            client.resume(waiting.job_id)


def forget(cluster: RunningCluster, job_id: str) -> None:
    """Remove every trace of a job from etcd, as if another one had been there."""

    async def delete() -> None:
        async with EtcdStore((cluster.endpoints["etcd"],)) as store:
            for prefix in ("/realloc/jobs/", "/realloc/reports/", "/realloc/requests/"):
                for entry in await store.list(prefix):
                    if job_id in entry.key or entry.value == job_id.encode():
                        await store.delete(entry.key)

    asyncio.run(delete())


def test_a_cluster_that_has_never_heard_of_a_job_goes_on_with_it(
    cluster: RunningCluster, straight: Any, tmp_path: Path
) -> None:
    """With an empty etcd a job is resumed from its folder, under its id and with its history,
    bit by bit."""
    expected, reports, output = straight
    folder = tmp_path / "state"
    with cluster.client() as client:
        job = client.submit(work(cluster, folder, output=str(tmp_path / "model")))
        for update in job.watch():
            if update.report is not None and update.report.iteration == 1:
                job.pause()
        assert job.get().state is JobState.PAUSED
        forget(cluster, job.job_id)
        with pytest.raises(NotFound):
            client.job(job.job_id)
        again = client.resume(folder=str(folder))
        assert again.job_id == job.job_id
        ended = again.wait()
        assert numbers(again.reports()) == numbers(reports)
    assert ended.evaluations == expected.evaluations
    assert_equal_weights(tmp_path / "model", output)
