"""Which jobs may begin, and which may go on: checked before any time is spent.

A checkpoint folder belongs to one job at a time. A new job finds it without checkpoints, or
says that it goes on from them; then the experiment may differ only in what does not change the
numbers. A job goes on under its own id, also in a cluster that has never heard of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.core.experiment import Experiment
from realloc.core.job import Job, JobState
from services.scheduler.admission import Admission
from services.scheduler.job_changes import resumed
from services.scheduler.job_store import JobStore
from services.scheduler.saved_job import (
    SavedJob,
    check_same_job,
    newest_saved_job,
    read_saved_job,
    resume_point,
)

_FIELD = "checkpoint.folder"

Admit = Callable[[Experiment], Admission]
"""Checks an experiment, raising `InvalidInput` with every problem."""


class Resumption:
    """Queues new jobs and resumed ones."""

    def __init__(self, jobs: JobStore, admit: Admit) -> None:
        self._jobs = jobs
        self._admit = admit

    async def submit(self, job: Job, *, resume: bool, validate_only: bool) -> Job:
        """Queue a new job; with `resume` it goes on from what its folder has, if anything.

        Raises:
            InvalidInput: every problem of the experiment, or a folder that has checkpoints of
                something else, or has some and is not to be resumed.
            Conflict: another job that has not ended uses the folder.
        """
        earlier = await self._jobs.of_request(job.request_id)
        if earlier is not None:
            return earlier  # its own checkpoints must not be held against it
        admission = await asyncio.to_thread(self._admit, job.experiment)
        saved = await asyncio.to_thread(_saved_before, admission, resume)
        await self._check_unused(job)
        if saved is not None:
            evaluations = tuple(
                each
                for each in saved.job.evaluations
                if each.iteration <= saved.checkpoint.manifest.iteration
            )
            job = replace(job, evaluations=evaluations)
        if validate_only:
            return job
        return await self._jobs.create(job, saved.reports if saved else ())

    async def resume_job(self, job_id: str) -> Job:
        """Queue a job again that was paused, failed or was cancelled.

        Raises:
            Conflict: it has not stopped, has succeeded, or another job uses its folder.
            InvalidInput: there is nothing to go on from, or its files have changed.
        """
        job = await self._jobs.get(job_id)
        resumed(job)  # refuse before files are read
        if job.iteration or job.experiment.checkpoint.folder:
            await self._check_resumable(job)
        await self._check_unused(job)
        return await self._jobs.update(job_id, resumed, at_rest=True)

    async def resume_folder(self, folder: str) -> Job:
        """Queue the job again that wrote a folder's newest checkpoint, known here or not.

        Raises:
            as `resume_job`, and InvalidInput where the job is known with another folder.
        """
        saved = await asyncio.to_thread(newest_saved_job, folder, "folder")
        try:
            known = await self._jobs.get(saved.job.job_id)
        except NotFound:
            return await self._adopt(saved, folder)
        if known.experiment.checkpoint.folder != folder:
            raise InvalidInput.at(
                "folder",
                f"{folder} is a copy: job {known.job_id} has its checkpoints in "
                f"{known.experiment.checkpoint.folder}; submit its experiment with this folder "
                "and --resume",
            )
        return await self.resume_job(known.job_id)

    async def _adopt(self, saved: SavedJob, folder: str) -> Job:
        """A job of another cluster; its folder may have moved."""
        settings = replace(saved.job.experiment.checkpoint, folder=folder)
        experiment = replace(saved.job.experiment, checkpoint=settings)
        job = resumed(replace(saved.job, experiment=experiment, state=JobState.PAUSED))
        admission = await asyncio.to_thread(self._admit, experiment)
        check_same_job(admission, saved)
        await self._check_unused(job)
        return await self._jobs.create(job, saved.reports)

    async def _check_resumable(self, job: Job) -> None:
        settings = job.experiment.checkpoint
        if not settings.folder:
            raise InvalidInput.at(
                _FIELD, f"was empty, so job {job.job_id} left nothing to resume from; submit again"
            )
        admission = await asyncio.to_thread(self._admit, job.experiment)
        point = await asyncio.to_thread(resume_point, settings)
        if point.checkpoint is not None:
            saved = await asyncio.to_thread(read_saved_job, point.checkpoint)
            check_same_job(admission, saved)
        elif job.iteration:
            raise InvalidInput.at(
                _FIELD,
                f"{settings.folder} has no complete checkpoint, so the {job.iteration} iterations "
                f"of job {job.job_id} are lost; submit again",
            )

    async def _check_unused(self, job: Job) -> None:
        """Two jobs that write to one folder would go on from each other's checkpoints."""
        folder = job.experiment.checkpoint.folder
        for other in await self._jobs.list() if folder else ():
            same = other.experiment.checkpoint.folder == folder
            if same and other.job_id != job.job_id and not other.state.is_at_rest:
                raise Conflict(
                    f"{_FIELD} {folder} is used by job {other.job_id}, which is "
                    f"{other.state.value}; choose another folder or end that job"
                )


def _saved_before(admission: Admission, resume: bool) -> SavedJob | None:
    """What a new job goes on from.

    Raises:
        InvalidInput: it is something else, or the job did not say that it goes on.
    """
    settings = admission.experiment.checkpoint
    if resume and not settings.folder:
        raise InvalidInput.at(_FIELD, "is empty; a job resumes from the checkpoints of a folder")
    point = resume_point(settings)
    if point.checkpoint is None:
        return None
    saved = read_saved_job(point.checkpoint)
    if not resume:
        raise InvalidInput.at(
            _FIELD,
            f"{settings.folder} has checkpoints of job {saved.job.job_id} up to iteration "
            f"{point.iteration}; submit with --resume to go on, or choose another folder",
        )
    check_same_job(admission, saved)
    return saved
