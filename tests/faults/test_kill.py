"""Killing any process ends the job with a clear error, and the cluster goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from realloc.client.client import JobHandle
from realloc.core.errors import Unavailable
from realloc.core.job import Job, JobState
from tests.support.running_cluster import RunningCluster, experiment

END_SECONDS = 120.0
"""Far more than leases and deadlines take, far less than the deadline of a call."""
ROOT = Path(__file__).resolve().parents[2]


def kill_while_running(cluster: RunningCluster, name: str) -> tuple[Job, float]:
    """Kill a process in the middle of a job; how the job ended, and after how many seconds."""
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "ppo", iterations=100_000))
        killed = 0.0
        for update in job.watch():
            if update.report is not None and not killed:
                cluster.kill(name)
                killed = time.monotonic()
        return job.get(), time.monotonic() - killed


def run_another(cluster: RunningCluster) -> None:
    """The cluster is whole again: a job on all of its devices succeeds."""
    cluster.wait_ready()
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "ppo", iterations=1)).wait()
    assert job.state is JobState.SUCCEEDED


@pytest.mark.parametrize("name", ["trainer-1", "trainer-0", "generation-0", "param_store"])
def test_a_lost_process_fails_its_job_by_name(fragile: RunningCluster, name: str) -> None:
    """The error names the process that left, long before a call is late; then the next job runs."""
    job, seconds = kill_while_running(fragile, name)
    assert job.state is JobState.FAILED
    assert name in job.error
    assert seconds < END_SECONDS
    run_another(fragile)


def test_a_job_that_comes_right_after_a_death_waits_for_the_successor(
    fragile: RunningCluster,
) -> None:
    """The process that was killed is registered as long as its lease lasts; nobody counts on it."""
    fragile.kill("trainer-1", signal.SIGKILL)
    with fragile.client() as client:
        job = client.submit(experiment(fragile.folder, "sft", iterations=1)).wait()
    assert job.state is JobState.SUCCEEDED


def watch_until_it_ends(cluster: RunningCluster, job: JobHandle, name: str) -> tuple[str, float]:
    """Stop a process in the middle of a job; what the watcher was told, and when."""
    stopped = 0.0
    told = ""
    try:
        for update in job.watch():
            told = update.job.error
            if update.report is not None and not stopped:
                cluster.stop(name)
                stopped = time.monotonic()
    except Unavailable as error:
        told = str(error)
    return told, time.monotonic() - stopped


def test_a_stopped_scheduler_ends_the_watch_and_the_job(fragile: RunningCluster) -> None:
    """Who watches is told at once; the job is failed with the reason, not forgotten."""
    with fragile.client() as client:
        job = client.submit(experiment(fragile.folder, "ppo", iterations=100_000))
        told, seconds = watch_until_it_ends(fragile, job, "scheduler")
    assert "scheduler" in told
    assert seconds < END_SECONDS
    fragile.start("scheduler")
    fragile.wait_ready()
    with fragile.client() as client:
        ended = client.job(job.job_id)
    assert ended.state is JobState.FAILED
    assert "scheduler" in ended.error
    run_another(fragile)


def test_a_lost_plan_search_disturbs_no_running_job(fragile: RunningCluster) -> None:
    """It is needed before a job runs only."""
    with fragile.client() as client:
        job = client.submit(experiment(fragile.folder, "ppo", iterations=6))
        for update in job.watch():
            if update.report is not None and update.report.iteration == 1:
                fragile.kill("plan_search")
        assert job.get().state is JobState.SUCCEEDED
    run_another(fragile)


def test_a_restarted_etcd_disturbs_no_running_job(fragile: RunningCluster) -> None:
    """The watch goes on over the restart and misses no iteration."""
    with fragile.client() as client:
        job = client.submit(experiment(fragile.folder, "ppo", iterations=12))
        seen = []
        for update in job.watch():
            if update.report is not None:
                seen.append(update.report.iteration)
                if update.report.iteration == 2:
                    fragile.kill("etcd")
        assert job.get().state is JobState.SUCCEEDED
    assert seen == list(range(1, 13))


def test_an_etcd_that_stays_away_ends_the_watch(fragile: RunningCluster) -> None:
    """Without the store nobody hangs: the watcher is told in time what is out of reach."""
    with fragile.client() as client:
        job = client.submit(experiment(fragile.folder, "ppo", iterations=100_000))
        told, seconds = watch_until_it_ends(fragile, job, "etcd")
    assert "etcd" in told
    assert seconds < END_SECONDS
    fragile.start("etcd")
    run_another(fragile)
    with fragile.client() as client:
        assert client.job(job.job_id).state is JobState.FAILED


@pytest.mark.parametrize(
    ("command", "kill_when"),
    [
        (["-m", "deploy.local", "--devices", "1"], "ready:"),
        (["-c", "from tools.demo import local_cluster as c\nwith c(): pass"], "starting services"),
    ],
    ids=["of a cluster that serves", "of the demo's, which starts"],
)
def test_a_supervisor_that_is_killed_leaves_no_process(
    tmp_path: Path, command: list[str], kill_when: str
) -> None:
    """Even SIGKILL ends every process that it started, and those that they started."""
    cluster = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "common"), str(ROOT)))},
    )
    assert cluster.stdout is not None
    for line in cluster.stdout:
        if kill_when in line:
            break
    family = psutil.Process(cluster.pid).children(True)
    assert len(family) >= 6 or kill_when == "starting services"
    cluster.send_signal(signal.SIGKILL)
    cluster.wait(END_SECONDS)
    _, left = psutil.wait_procs(family, timeout=END_SECONDS)
    assert not left
