"""Takes jobs from submission to their end: plan, wait for devices, run, recover, let go.

Only the leader dispatches. It follows the jobs in the store, so that a job submitted, paused,
resumed or cancelled through any scheduler reaches it.
"""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from realloc.api.plan_search.v1 import plan_search_pb2_grpc
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import ReallocError, Unavailable
from realloc.core.experiment import Experiment
from realloc.core.job import Job, JobState, Wanted
from realloc.core.mesh import Cluster
from realloc.core.plan import ExecutionPlan
from realloc.telemetry.names import Metric, Span
from realloc.telemetry.spans import record, span
from services.scheduler.admission import Admission, admit
from services.scheduler.devices import Devices
from services.scheduler.job_devices import generation_devices, trainer_devices
from services.scheduler.job_members import JobMembers
from services.scheduler.job_run import JobRun, ShardLost
from services.scheduler.job_spans import JobSpans, job_spans
from services.scheduler.job_store import JobStore
from services.scheduler.memory_check import check_memory
from services.scheduler.planning import search_plan
from services.scheduler.real_cluster import real_cluster
from services.scheduler.runner import RunEnd
from services.scheduler.saved_job import (
    ResumePoint,
    check_same_job,
    read_saved_job,
    resume_point,
)
from services.scheduler.shards import Connect, connect_shards, is_alive

log = structlog.get_logger(__name__)

_STOPPED = "the scheduler that ran this job was stopped; submit the job again"
_ON_SHARDS = frozenset({JobState.STARTING, JobState.RUNNING, JobState.RECOVERING})


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherSettings:
    """What the operator sets."""

    cluster: Cluster
    reward_roots: tuple[Path, ...]
    """Folders that reward functions may lie in."""
    output_roots: tuple[Path, ...] = ()
    """Folders that jobs may write into; empty for any."""
    search_seconds: float
    """Longest plan search."""
    member_timeout_seconds: float
    """Longest wait for the processes of a job's devices."""
    recovery_timeout_seconds: float
    """Longest wait for them where a job has lost one."""

    def admit(self, experiment: Experiment) -> Admission:
        """Check an experiment; see `services.scheduler.admission.admit`."""
        return admit(
            experiment,
            self.cluster,
            reward_roots=self.reward_roots,
            output_roots=self.output_roots,
        )


class Dispatcher:
    """Runs jobs as tasks of one event loop; `run` ends only by cancellation or an error."""

    def __init__(
        self, *, jobs: JobStore, members: Members, connect: Connect, settings: DispatcherSettings
    ) -> None:
        self._jobs = jobs
        self._members = members
        self._connect = connect
        self._settings = settings
        self._devices = Devices()
        self._planning = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._runs: dict[str, JobRun] = {}
        """Jobs that are on their shards."""
        self._latest: dict[str, Job] = {}
        """What the store said last of each job that has a task."""

    async def run(self) -> None:
        """Follow all jobs; when cancelled, end those that run and say so in the store."""
        try:
            await self._adopt_orphans()
            async for job in self._jobs.watch_all():
                self._follow(job)
            raise Unavailable("the store closed its watch")
        finally:
            self._stopping = True
            for task in self._tasks.values():
                task.cancel(_STOPPED)
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _adopt_orphans(self) -> None:
        """Jobs that an earlier leader ran have lost their runner: they recover or fail."""
        for job in await self._jobs.list():
            if job.state in _ON_SHARDS:
                await self._stopped(job.job_id)

    def _follow(self, job: Job) -> None:
        task, before = self._tasks.get(job.job_id), self._latest.get(job.job_id)
        if task is None:
            if not job.state.is_at_rest:
                self._start(job)
            return
        self._latest[job.job_id] = job
        was_running = before is not None and before.state is JobState.RUNNING
        if job.state is JobState.CANCELLED or (job.state is JobState.PAUSED and not was_running):
            task.cancel()
        elif before is not None and job.wanted is not before.wanted and job.job_id in self._runs:
            self._runs[job.job_id].want(job.wanted)

    def _start(self, job: Job) -> None:
        self._latest[job.job_id] = job
        task = asyncio.create_task(self._run_job(job), name=f"job {job.job_id}")
        self._tasks[job.job_id] = task
        task.add_done_callback(lambda _: self._ended(job.job_id))

    def _ended(self, job_id: str) -> None:
        del self._tasks[job_id]
        latest = self._latest.pop(job_id)
        # It may have been resumed while its last run let go of the shards.
        if latest.state is JobState.PENDING and not self._stopping:
            self._start(latest)

    async def _run_job(self, job: Job) -> None:
        structlog.contextvars.bind_contextvars(job=job.job_id)
        try:
            # The watch may be behind what this leader has written itself: a run's last steps must
            # not look like a job that nobody runs.
            job = await self._jobs.get(job.job_id)
            if not job.state.is_at_rest:
                await self._plan_and_run(job)
        except asyncio.CancelledError as error:
            if error.args == (_STOPPED,):
                await self._stopped(job.job_id)
            log.info("job stopped")
        except ReallocError as error:
            log.warning("job failed", error=str(error), kind=type(error).__name__)
            await self._end(job.job_id, JobState.FAILED, error=str(error))
        except Exception:
            log.exception("job failed unexpectedly")
            reason = "an internal error; the scheduler's log has the details"
            await self._end(job.job_id, JobState.FAILED, error=reason)

    async def _stopped(self, job_id: str) -> None:
        """A job whose runner is gone: one that can be resumed waits for the next leader, one
        that was not on its shards yet simply goes on waiting."""

        def change(job: Job) -> Job:
            if job.state not in _ON_SHARDS:
                return job
            if not job.experiment.checkpoint.folder:
                return replace(
                    job, state=JobState.FAILED, error=_STOPPED, activity="", end_time=time.time()
                )
            return replace(
                job, state=JobState.RECOVERING, activity="its scheduler was stopped; it goes on"
            )

        with suppress(ReallocError):
            await self._jobs.update(job_id, change)

    async def _plan_and_run(self, job: Job) -> None:
        with job_spans(job.job_id, job.experiment.algorithm) as spans:
            # One after the other, so that jobs queue for devices in the order they came.
            async with self._planning:
                admission = await self._admit(job.experiment)
                plan = await self._planned(job, admission, spans)
                trainers = trainer_devices(admission.graph, plan)
                generators = generation_devices(admission.graph, plan)
                reservation = self._devices.reserve({*trainers, *generators})
            async with reservation:
                end = await self._run_until_it_ends(job, admission, plan, spans)
                if end.paused:
                    await self._end(job.job_id, JobState.PAUSED, wanted=Wanted.NOTHING)
                else:
                    await self._end(
                        job.job_id,
                        JobState.SUCCEEDED,
                        checkpoint=end.checkpoint,
                        wanted=Wanted.NOTHING,
                    )

    async def _planned(self, job: Job, admission: Admission, spans: JobSpans) -> ExecutionPlan:
        """The job's plan; one that it had when it was resumed is kept, so that its numbers go on
        bit by bit."""
        if job.state is JobState.RECOVERING and job.plan is not None:
            await self._jobs.update(job.job_id, partial(replace, trace_id=spans.trace_id))
            return job.plan
        await self._jobs.move(job.job_id, JobState.PLANNING, trace_id=spans.trace_id)
        plan = job.plan
        if plan is None or not _fits(plan, self._settings.cluster):
            with span(Span.JOB_PLAN):
                plan = await self._plan(admission)
        check_memory(admission, plan, self._settings.cluster)
        await self._jobs.move(
            job.job_id, JobState.QUEUED, plan=plan, activity="waiting for devices"
        )
        return plan

    async def _run_until_it_ends(
        self, job: Job, admission: Admission, plan: ExecutionPlan, spans: JobSpans
    ) -> RunEnd:
        """Run a job, again and again where it loses a shard and has where to go on from."""
        gone: frozenset[Member] = frozenset()
        seconds = self._settings.member_timeout_seconds
        if job.state is JobState.RECOVERING:
            seconds = self._settings.recovery_timeout_seconds
        while True:
            members = self._job_members(seconds, gone)
            try:
                return await self._run_once(job.job_id, admission, plan, spans, members)
            except ShardLost as error:
                await self._recover(job.job_id, error)
                gone |= error.members
                seconds = self._settings.recovery_timeout_seconds

    async def _run_once(
        self,
        job_id: str,
        admission: Admission,
        plan: ExecutionPlan,
        spans: JobSpans,
        members: JobMembers,
    ) -> RunEnd:
        resume = await asyncio.to_thread(self._resume_point, admission)
        shards = connect_shards(
            self._connect,
            trainers=await members.on_devices("trainer", trainer_devices(admission.graph, plan)),
            generators=await members.on_devices(
                "generation", generation_devices(admission.graph, plan)
            ),
            param_store=await members.one("param_store"),
        )
        await self._jobs.move(job_id, JobState.STARTING, activity="connecting to shards")
        run = self._runs[job_id] = JobRun(
            jobs=self._jobs,
            members=self._members,
            job_id=job_id,
            admission=admission,
            plan=plan,
            shards=shards,
            spans=spans,
            resume=resume,
        )
        run.want(self._latest[job_id].wanted)
        try:
            return await run.run()
        finally:
            del self._runs[job_id]
            await shards.close()

    def _job_members(self, seconds: float, gone: Collection[Member] = ()) -> JobMembers:
        alive = partial(is_alive, self._connect)
        return JobMembers(self._members, alive, timeout_seconds=seconds, gone=gone)

    def _resume_point(self, admission: Admission) -> ResumePoint:
        """Where the job goes on, if anywhere.

        Raises:
            InvalidInput: the checkpoint is of something else.
        """
        point = resume_point(admission.experiment.checkpoint)
        if point.checkpoint is not None:
            check_same_job(admission, read_saved_job(point.checkpoint))
        return point

    async def _recover(self, job_id: str, error: ShardLost) -> None:
        """Make a job that lost a shard wait for another try.

        Raises:
            ShardLost: it has nowhere to go on from, or has lost shards too often.
        """
        job = await self._jobs.get(job_id)
        settings = job.experiment.checkpoint
        if not settings.folder:
            raise error
        if job.recoveries >= settings.max_recoveries:
            raise ShardLost(
                f"{error} (after {job.recoveries} recoveries without a new checkpoint)",
                error.members,
            )
        log.warning("job recovers", reason=str(error), recoveries=job.recoveries + 1)
        record(Metric.RECOVERIES, 1)
        await self._jobs.move(
            job_id,
            JobState.RECOVERING,
            recoveries=job.recoveries + 1,
            activity="waiting for its processes to be back",
            warning=f"recovered: {error}",
        )

    async def _admit(self, experiment: Experiment) -> Admission:
        return await asyncio.to_thread(self._settings.admit, experiment)

    async def _plan(self, admission: Admission) -> ExecutionPlan:
        seconds = self._settings.member_timeout_seconds
        member = await self._job_members(seconds).one("plan_search")
        channel = self._connect(member.address)
        try:
            return await search_plan(
                plan_search_pb2_grpc.PlanSearchServiceStub(channel),
                admission,
                real_cluster(self._settings.cluster, self._members.current("trainer")),
                corrections=await self._jobs.corrections(),
                seconds=self._settings.search_seconds,
            )
        finally:
            await channel.close()

    async def _end(self, job_id: str, state: JobState, **changes: Any) -> None:
        with suppress(ReallocError):
            await self._jobs.move(job_id, state, end_time=time.time(), activity="", **changes)


def _fits(plan: ExecutionPlan, cluster: Cluster) -> bool:
    """True where the cluster has every mesh of a plan."""
    return {placement.mesh for placement in plan.placements} <= set(cluster.meshes())
