"""A job with checkpoints outlives the processes that it runs on."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realloc.core.errors import JobFailed, NotFound, Unavailable
from realloc.core.experiment import Experiment
from realloc.core.job import Job, JobState
from tests.support.running_cluster import RunningCluster, experiment, numbers

ITERATIONS = 18
WAIT_SECONDS = 400.0


def work(cluster: RunningCluster, folder: Path | None, **checkpoint: Any) -> Experiment:
    settings = {"folder": str(folder), "every": 2, **checkpoint} if folder else {}
    return experiment(cluster.folder, "ppo", iterations=ITERATIONS, checkpoint=settings)


def wait_until(cluster: RunningCluster, job_id: str, done: Callable[[Job], bool]) -> Job:
    """The job once it is as wanted; a scheduler that is gone meanwhile is looked for again."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with cluster.client() as client:
                while time.monotonic() < deadline:
                    if done(found := client.job(job_id)):
                        return found
                    time.sleep(0.05)
        except (Unavailable, NotFound):
            cluster.wait_ready()
    raise AssertionError(f"after {WAIT_SECONDS} s it is {found}")


def test_a_job_outlives_trainer_param_store_and_scheduler(
    fragile: RunningCluster, tmp_path: Path
) -> None:
    """One after the other is killed in the middle of it; it recovers each time, and every
    iteration has the numbers of a job that lost nothing, bit by bit."""
    with fragile.client() as client:
        straight = client.submit(work(fragile, None))
        straight.wait()
        expected = numbers(straight.reports())
        job_id = client.submit(work(fragile, tmp_path / "state")).job_id
    for name, done in (("trainer-1", 2), ("param_store", 6)):
        wait_until(fragile, job_id, lambda job, done=done: job.iteration >= done)
        fragile.kill(name, signal.SIGKILL)
        lost = wait_until(fragile, job_id, lambda job: job.recoveries == 1)
        assert name in lost.warning
        wait_until(fragile, job_id, lambda job: job.recoveries == 0)  # a checkpoint later
    wait_until(fragile, job_id, lambda job: job.iteration >= 10)
    fragile.kill("scheduler", signal.SIGKILL)
    ended = wait_until(fragile, job_id, lambda job: job.state.is_at_rest)
    assert ended.state is JobState.SUCCEEDED, ended.error
    with fragile.client() as client:
        reports = client.reports(job_id)
    assert numbers(reports) == expected
    assert [report.iteration for report in reports] == list(range(1, ITERATIONS + 1))


def test_a_job_that_only_loses_gives_up(fragile: RunningCluster, tmp_path: Path) -> None:
    """Beyond `max_recoveries` losses without a new checkpoint the job fails, and says both."""
    with fragile.client() as client:
        job = client.submit(work(fragile, tmp_path / "state", every=1000, max_recoveries=0))
        for update in job.watch():
            if update.report is not None and update.report.iteration == 1:
                fragile.kill("generation-1")
        with pytest.raises(JobFailed, match=r"generation-1 .* 0 recoveries without a new"):
            job.wait()
    fragile.wait_ready()


def test_a_job_goes_on_when_its_scheduler_is_back(fragile: RunningCluster, tmp_path: Path) -> None:
    """A scheduler that was stopped in good order leaves its job to the next one."""
    with fragile.client() as client:
        job_id = client.submit(work(fragile, tmp_path / "state")).job_id
    wait_until(fragile, job_id, lambda job: job.iteration >= 2)
    fragile.stop("scheduler")
    fragile.start("scheduler")
    fragile.wait_ready()
    ended = wait_until(fragile, job_id, lambda job: job.state.is_at_rest)
    assert ended.state is JobState.SUCCEEDED, ended.error
