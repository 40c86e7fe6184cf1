"""One start of a job on its shards: it runs to its end, to a pause, or until it loses one."""

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import InvalidInput, JobFailed, ReallocError, Unavailable
from realloc.core.job import Evaluation, IterationReport, Job, JobState, SavedCheckpoint, Wanted
from realloc.core.plan import ExecutionPlan
from realloc.telemetry.names import Span
from realloc.telemetry.spans import span
from services.scheduler.admission import Admission
from services.scheduler.checkpoints import CheckpointEvents
from services.scheduler.job_spans import JobSpans
from services.scheduler.job_store import JobStore
from services.scheduler.recalibration import StageRecalibration
from services.scheduler.runner import JobEvents, JobRunner, RunEnd
from services.scheduler.saved_job import ResumePoint
from services.scheduler.shards import JobShards

log = structlog.get_logger(__name__)

_CAUSE_SECONDS = 2.0
"""The process that broke a call may be seen to leave a moment later."""


class ShardLost(JobFailed):
    """A process of the job is gone or does not answer; the job itself did nothing wrong."""

    def __init__(self, message: str, members: Collection[Member]) -> None:
        super().__init__(message)
        self.members = frozenset(members)
        """Those who will have to be replaced, as far as it is known."""


class JobRun:
    """Starts a job, runs it, and lets go of its shards however it ends."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        members: Members,
        job_id: str,
        admission: Admission,
        plan: ExecutionPlan,
        shards: JobShards,
        spans: JobSpans,
        resume: ResumePoint,
    ) -> None:
        self._jobs = jobs
        self._members = members
        self._job_id = job_id
        self._resume = resume
        self._shards = shards
        self._activity = _Activity(jobs, job_id)
        self._recalibration = StageRecalibration(jobs, admission, plan)
        self._runner = JobRunner(
            job_id=job_id,
            admission=admission,
            plan=plan,
            shards=shards,
            events=self._events(),
            spans=spans,
            resume=resume.checkpoint,
        )

    def want(self, wanted: Wanted) -> None:
        """Pass on what was asked of the job."""
        self._runner.want(wanted)

    async def run(self) -> RunEnd:
        """Run until the job ends, pauses, or one of its processes leaves the cluster.

        Raises:
            ShardLost: the shards are at fault; the same job may run on others.
            ReallocError: whatever else ended it.
        """
        guard = asyncio.create_task(self._members.wait_left(self._shards.members))
        work = asyncio.create_task(self._start_and_run())
        shown = asyncio.create_task(self._activity.run())
        failure: ReallocError | None = None
        try:
            await asyncio.wait([guard, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done() and work.exception() is None:
                return work.result()
            if guard.done():
                raise self._left(guard.result(), "")
            return work.result()
        except ReallocError as error:
            failure = await self._explained(guard, error)
        finally:
            for task in (guard, work, shown):
                task.cancel()
            await asyncio.gather(guard, work, shown, return_exceptions=True)
            await self._runner.end()
        assert failure is not None
        raise self._lost(failure) or failure

    async def _explained(self, guard: "asyncio.Task[Member]", error: ReallocError) -> ReallocError:
        """The error, by the name of the process that left where one did."""
        if isinstance(error, ShardLost) or not isinstance(error, Unavailable):
            return error
        with suppress(TimeoutError):
            left = await asyncio.wait_for(asyncio.shield(guard), _CAUSE_SECONDS)
            return self._left(left, f": {error}")
        return ShardLost(str(error), ())

    def _left(self, member: Member, reason: str) -> ShardLost:
        text = f"{member.name} ({member.address}) left the cluster while the job ran{reason}"
        return ShardLost(text, [member])

    def _lost(self, error: ReallocError) -> ShardLost | None:
        """The shards are at fault also where one of them no longer answers after an error, but
        not where the work itself says why it failed."""
        unanswered = self._runner.unanswered
        said_why = isinstance(error, InvalidInput | JobFailed)
        if not isinstance(error, ShardLost) and (said_why or not unanswered):
            return None
        known = error.members if isinstance(error, ShardLost) else frozenset()
        text = str(error)
        if not known and unanswered:
            text = f"{', '.join(member.name for member in unanswered)} did not answer: {text}"
        return ShardLost(text, known | set(unanswered))

    async def _start_and_run(self) -> RunEnd:
        with span(Span.JOB_SETUP):
            await self._runner.start()
        await self._jobs.update(self._job_id, self._begun)
        return await self._runner.run()

    def _begun(self, job: Job) -> Job:
        """The job as its iterations begin: what will be repeated is forgotten."""
        done = self._resume.iteration
        return replace(
            job,
            state=JobState.RUNNING,
            start_time=job.start_time or time.time(),
            iteration=done,
            evaluations=tuple(each for each in job.evaluations if done and each.iteration <= done),
            saved=self._resumed_from(job.saved),
            warning="; ".join(filter(None, (job.warning, self._resume.warning))),
        )

    def _resumed_from(self, known: SavedCheckpoint | None) -> SavedCheckpoint | None:
        """The checkpoint that the run began with; how long it took is known where it was made."""
        checkpoint = self._resume.checkpoint
        if checkpoint is None or (known is not None and known.path == str(checkpoint.path)):
            return known if checkpoint else None
        return SavedCheckpoint(
            iteration=checkpoint.manifest.iteration,
            path=str(checkpoint.path),
            bytes=checkpoint.manifest.num_bytes,
            snapshot_seconds=0.0,
            write_seconds=0.0,
        )

    def _events(self) -> JobEvents:
        async def reported(report: IterationReport) -> None:
            report = await self._recalibration.completed(report)
            await self._jobs.add_report(self._job_id, report)
            await self._change(lambda job: replace(job, iteration=report.iteration))

        async def evaluated(evaluation: Evaluation) -> None:
            await self._change(lambda job: replace(job, evaluations=(*job.evaluations, evaluation)))

        async def history() -> tuple[Job, Sequence[IterationReport]]:
            job = await self._jobs.get(self._job_id)
            reports = await self._jobs.reports(self._job_id)
            return job, [each for each in reports if each.iteration <= job.iteration]

        async def saved(checkpoint: SavedCheckpoint) -> None:
            await self._change(
                lambda job: replace(_saving_ended(job), saved=checkpoint, recoveries=0, warning="")
            )
            log.info(
                "checkpoint written",
                iteration=checkpoint.iteration,
                bytes=checkpoint.bytes,
                snapshot_seconds=round(checkpoint.snapshot_seconds, 3),
                write_seconds=round(checkpoint.write_seconds, 3),
            )

        async def failed(reason: str) -> None:
            log.warning("checkpoint not written", reason=reason)
            await self._change(lambda job: replace(_saving_ended(job), warning=reason))

        return JobEvents(
            reported=reported,
            evaluated=evaluated,
            progress=self._activity.set,
            checkpoints=CheckpointEvents(history=history, saved=saved, failed=failed),
        )

    async def _change(self, change: Any) -> None:
        await self._jobs.update(self._job_id, change)


def _saving_ended(job: Job) -> Job:
    """A checkpoint that was asked for has been written, or could not be."""
    return replace(job, wanted=Wanted.NOTHING) if job.wanted is Wanted.CHECKPOINT else job


class _Activity:
    """What the job is doing, written to the store a few times a second at most."""

    def __init__(self, jobs: JobStore, job_id: str) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._text = ""
        self._changed = asyncio.Event()

    def set(self, text: str) -> None:
        """Show a phrase as soon as the store may be written again."""
        if text != self._text:
            self._text = text
            self._changed.set()

    async def run(self) -> None:
        """Write changes until cancelled; a store out of reach loses a phrase, not the job."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            change = partial(replace, activity=self._text)
            with suppress(ReallocError):
                await self._jobs.update(self._job_id, change)
            await asyncio.sleep(0.25)
