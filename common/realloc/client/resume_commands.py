"""The verbs that save, pause and resume jobs; each returns the exit status."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realloc.client.client import Client
from realloc.client.commands import plain, say, watch_handle
from realloc.core.errors import Conflict, JobFailed, Unavailable
from realloc.core.job import Job, JobState, Wanted

_POLL_SECONDS = 0.2


def save_job(arguments: argparse.Namespace) -> int:
    """Ask for a checkpoint and wait until it is written."""
    with Client(arguments.address) as client:
        before = client.job(arguments.job_id)
        client.save(arguments.job_id)
        job = _wait(client, before.job_id, _is_saved, arguments.timeout)
    if job.saved is None or job.saved == before.saved:
        raise JobFailed(job.warning or job.error or f"job {job.job_id} is {job.state.value}")
    say(arguments, plain(job.saved), f"saved iteration {job.saved.iteration}: {job.saved.path}")
    return 0


def pause_job(arguments: argparse.Namespace) -> int:
    """Ask a job to pause and wait until it does."""
    with Client(arguments.address) as client:
        client.pause(arguments.job_id)
        job = _wait(client, arguments.job_id, _is_at_rest, arguments.timeout)
    say(arguments, plain(job), f"{job.job_id} is {job.state.value}{_resume_hint(job)}")
    return 0 if job.state is JobState.PAUSED else 1


def resume_job(arguments: argparse.Namespace) -> int:
    """Queue a job again, named by its id or by its checkpoint folder."""
    with Client(arguments.address) as client:
        if "/" in arguments.job or Path(arguments.job).is_dir():
            handle = client.resume(folder=str(Path(arguments.job).absolute()))
        else:
            handle = client.resume(arguments.job)
        job = handle.get()
        done = job.saved.iteration if job.saved else 0
        facts = {"job_id": job.job_id, "iteration": done}
        say(arguments, facts, f"resumed {job.job_id} after iteration {done}")
        return watch_handle(handle, arguments) if arguments.watch else 0


def drain(arguments: argparse.Namespace) -> int:
    """Pause every job that can be resumed, and wait until all are saved."""
    paused: list[Job] = []
    left: list[dict[str, str]] = []
    deadline = time.monotonic() + arguments.timeout
    with Client(arguments.address) as client:
        asked: list[str] = []
        for job in [each for each in client.jobs() if not each.state.is_at_rest]:
            try:
                client.pause(job.job_id)
                asked.append(job.job_id)
            except Conflict as error:
                left.append({"job_id": job.job_id, "reason": str(error)})
        for job_id in asked:
            try:
                job = _wait(client, job_id, _is_at_rest, deadline - time.monotonic())
            except Unavailable as error:
                left.append({"job_id": job_id, "reason": str(error)})
                continue
            if job.state is JobState.PAUSED:
                paused.append(job)
            elif job.state is not JobState.SUCCEEDED:
                left.append({"job_id": job_id, "reason": job.error or job.state.value})
    _say_drained(arguments, paused, left)
    return 1 if left else 0


def _say_drained(arguments: argparse.Namespace, paused: list[Job], left: list[Any]) -> None:
    facts = {
        "paused": [
            {
                "job_id": job.job_id,
                "folder": job.experiment.checkpoint.folder,
                "iteration": job.saved.iteration if job.saved else 0,
            }
            for job in paused
        ],
        "left": left,
    }
    lines = [f"{job.job_id} is paused{_resume_hint(job)}" for job in paused]
    lines += [f"{each['job_id']} goes on: {each['reason']}" for each in left]
    say(arguments, facts, "\n".join(lines) or "no jobs")


def _resume_hint(job: Job) -> str:
    if job.state is not JobState.PAUSED:
        return f": {job.error}" if job.error else ""
    done = job.saved.iteration if job.saved else 0
    return f" after iteration {done}; realloc resume {job.job_id}"


def _is_saved(job: Job) -> bool:
    return job.state.is_at_rest or job.wanted is not Wanted.CHECKPOINT


def _is_at_rest(job: Job) -> bool:
    return job.state.is_at_rest


def _wait(client: Client, job_id: str, done: Callable[[Job], bool], timeout_seconds: float) -> Job:
    """The job once it is as wanted.

    Raises:
        Unavailable: it is not in time; what was asked for stays asked.
    """
    deadline = time.monotonic() + timeout_seconds
    while not done(job := client.job(job_id)):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"job {job_id} is still {job.state.value} ({job.activity}) after "
                f"{timeout_seconds:.0f} s; what was asked of it stays asked"
            )
        time.sleep(_POLL_SECONDS)
    return job
