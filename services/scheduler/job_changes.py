"""What clients may ask of a job, as changes of the job: a job in, the changed job out."""

import time
from dataclasses import replace

from realloc.core.errors import Conflict
from realloc.core.job import Job, JobState, Wanted


def cancelled(job: Job) -> Job:
    """The end of a job that has not ended; a paused one ends, too."""
    if job.state.is_at_rest and job.state is not JobState.PAUSED:
        return job
    return replace(
        job,
        state=JobState.CANCELLED,
        end_time=time.time(),
        activity="",
        wanted=Wanted.NOTHING,
    )


def pausing(job: Job) -> Job:
    """A job that runs is to be saved and to pause; one that does not run pauses at once.

    Raises:
        Conflict: it runs and has nowhere to be saved.
    """
    if job.state.is_at_rest:
        return job
    if job.state is not JobState.RUNNING:
        return replace(job, state=JobState.PAUSED, activity="", wanted=Wanted.NOTHING)
    if not job.experiment.checkpoint.folder:
        raise Conflict(
            f"job {job.job_id} has no checkpoint.folder, so a pause would lose its "
            f"{job.iteration} iterations; let it end, or cancel it"
        )
    return replace(job, wanted=Wanted.PAUSE)


def saving(job: Job) -> Job:
    """A job that runs is to be saved after the present iteration.

    Raises:
        Conflict: it does not run, or has nowhere to be saved.
    """
    if job.state is not JobState.RUNNING:
        raise Conflict(f"job {job.job_id} is {job.state.value}; only a running job is saved")
    if not job.experiment.checkpoint.folder:
        raise Conflict(f"job {job.job_id} has no checkpoint.folder; submit it with one")
    return replace(job, wanted=Wanted.CHECKPOINT) if job.wanted is Wanted.NOTHING else job


def resumed(job: Job) -> Job:
    """A job at rest waits for its turn again.

    Raises:
        Conflict: it is not at rest, or has succeeded.
    """
    if not job.state.is_at_rest:
        raise Conflict(f"job {job.job_id} is {job.state.value}; only a stopped job is resumed")
    if job.state is JobState.SUCCEEDED:
        raise Conflict(
            f"job {job.job_id} has succeeded; to train on, submit it with more iterations and "
            f"--resume"
        )
    return replace(
        job,
        state=JobState.PENDING,
        error="",
        activity="",
        end_time=0.0,
        wanted=Wanted.NOTHING,
        recoveries=0,
        warning="",
    )
