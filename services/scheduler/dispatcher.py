"""Takes jobs from submission to their end: plan, wait for devices, run, let go.

Only the leader dispatches. It follows the jobs in the store, so that a job submitted or
cancelled through any scheduler reaches it.
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
from realloc.core.errors import JobFailed, NotFound, ReallocError, Unavailable
from realloc.core.experiment import Experiment
from realloc.core.job import Evaluation, IterationReport, Job, JobState
from realloc.core.mesh import Cluster
from realloc.core.plan import ExecutionPlan
from realloc.telemetry.names import Span
from realloc.telemetry.spans import span
from services.scheduler.admission import Admission, admit
from services.scheduler.devices import Devices
from services.scheduler.job_spans import JobSpans, job_spans
from services.scheduler.job_store import JobStore
from services.scheduler.memory_check import check_memory
from services.scheduler.planning import search_plan
from services.scheduler.recalibration import StageRecalibration
from services.scheduler.runner import (
    JobEvents,
    JobRunner,
    generation_devices,
    trainer_devices,
)
from services.scheduler.shards import Connect, JobShards, connect_shards

log = structlog.get_logger(__name__)

_STOPPED = "the scheduler that ran this job was stopped; submit the job again"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherSettings:
    """What the operator sets."""

    cluster: Cluster
    reward_roots: tuple[Path, ...]
    """Folders that reward functions may lie in."""
    search_seconds: float
    """Longest plan search."""
    member_timeout_seconds: float
    """Longest wait for the processes of a job's devices."""


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

    async def run(self) -> None:
        """Follow all jobs; when cancelled, end those that run and say so in the store."""
        try:
            await self._fail_orphans()
            async for job in self._jobs.watch_all():
                self._follow(job)
            raise Unavailable("the store closed its watch")
        finally:
            for task in self._tasks.values():
                task.cancel(_STOPPED)
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _fail_orphans(self) -> None:
        """Jobs that an earlier leader ran have lost their runner."""
        for job in await self._jobs.list():
            if job.state in (JobState.STARTING, JobState.RUNNING):
                await self._end(job.job_id, JobState.FAILED, error=_STOPPED)

    def _follow(self, job: Job) -> None:
        task = self._tasks.get(job.job_id)
        if job.state is JobState.CANCELLED and task is not None:
            task.cancel()
        elif not job.state.is_final and task is None:
            task = asyncio.create_task(self._run_job(job), name=f"job {job.job_id}")
            self._tasks[job.job_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(job.job_id, None))

    async def _run_job(self, job: Job) -> None:
        structlog.contextvars.bind_contextvars(job=job.job_id)
        try:
            await self._plan_and_run(job)
        except asyncio.CancelledError as error:
            if error.args == (_STOPPED,):
                await self._end(job.job_id, JobState.FAILED, error=_STOPPED)
            log.info("job stopped")
        except ReallocError as error:
            log.warning("job failed", error=str(error), kind=type(error).__name__)
            await self._end(job.job_id, JobState.FAILED, error=str(error))
        except Exception:
            log.exception("job failed unexpectedly")
            reason = "an internal error; the scheduler's log has the details"
            await self._end(job.job_id, JobState.FAILED, error=reason)

    async def _plan_and_run(self, job: Job) -> None:
        with job_spans(job.job_id, job.experiment.algorithm) as spans:
            # One after the other, so that jobs queue for devices in the order they came.
            async with self._planning:
                admission = await self._admit(job.experiment)
                await self._advance(job.job_id, JobState.PLANNING, trace_id=spans.trace_id)
                with span(Span.JOB_PLAN):
                    plan = await self._plan(admission)
                    check_memory(admission, plan, self._settings.cluster)
                await self._advance(
                    job.job_id, JobState.QUEUED, plan=plan, activity="waiting for devices"
                )
                trainers = trainer_devices(admission.graph, plan)
                generators = generation_devices(admission.graph, plan)
                reservation = self._devices.reserve({*trainers, *generators})
            async with reservation:
                await self._advance(job.job_id, JobState.STARTING, activity="connecting to shards")
                shards = await self._connect_shards(trainers, generators)
                try:
                    checkpoint = await self._run_guarded(job.job_id, admission, plan, shards, spans)
                finally:
                    await shards.close()
                await self._end(job.job_id, JobState.SUCCEEDED, checkpoint=checkpoint)

    async def _admit(self, experiment: Experiment) -> Admission:
        return await asyncio.to_thread(
            admit, experiment, self._settings.cluster, reward_roots=self._settings.reward_roots
        )

    async def _plan(self, admission: Admission) -> ExecutionPlan:
        member = await self._one("plan_search")
        channel = self._connect(member.address)
        try:
            return await search_plan(
                plan_search_pb2_grpc.PlanSearchServiceStub(channel),
                admission,
                self._settings.cluster,
                seconds=self._settings.search_seconds,
            )
        finally:
            await channel.close()

    async def _connect_shards(
        self, trainers: Collection[int], generators: Collection[int]
    ) -> JobShards:
        return connect_shards(
            self._connect,
            trainers=await self._on_devices("trainer", trainers),
            generators=await self._on_devices("generation", generators),
            param_store=await self._one("param_store"),
        )

    async def _run_guarded(
        self,
        job_id: str,
        admission: Admission,
        plan: ExecutionPlan,
        shards: JobShards,
        spans: JobSpans,
    ) -> str:
        """Run a job until it ends or one of its processes leaves the cluster."""
        activity = _Activity(self._jobs, job_id)
        runner = JobRunner(
            job_id=job_id,
            admission=admission,
            plan=plan,
            shards=shards,
            events=self._events(job_id, activity, StageRecalibration(self._jobs, admission, plan)),
            spans=spans,
        )
        guard = asyncio.create_task(self._members.wait_left(shards.members))
        work = asyncio.create_task(self._start_and_run(job_id, runner))
        shown = asyncio.create_task(activity.run())
        try:
            await asyncio.wait([guard, work], return_when=asyncio.FIRST_COMPLETED)
            if guard.done() and (not work.done() or work.exception() is not None):
                left = guard.result()
                raise JobFailed(f"{left.name} ({left.address}) left the cluster while the job ran")
            return work.result()
        except Unavailable as error:
            # The process that broke the call may leave a moment later: name it, not its peer.
            raise JobFailed(await self._cause(guard, str(error))) from error
        finally:
            for task in (guard, work, shown):
                task.cancel()
            await asyncio.gather(guard, work, shown, return_exceptions=True)
            await runner.end()

    async def _cause(self, guard: "asyncio.Task[Member]", error: str) -> str:
        with suppress(TimeoutError):
            left = await asyncio.wait_for(asyncio.shield(guard), 2.0)
            return f"{left.name} ({left.address}) left the cluster while the job ran: {error}"
        return error

    async def _start_and_run(self, job_id: str, runner: JobRunner) -> str:
        with span(Span.JOB_SETUP):
            await runner.start()
        await self._advance(job_id, JobState.RUNNING, start_time=time.time())
        return await runner.run()

    def _events(
        self, job_id: str, activity: "_Activity", recalibration: StageRecalibration
    ) -> JobEvents:
        async def reported(report: IterationReport) -> None:
            report = await recalibration.completed(report)
            await self._jobs.add_report(job_id, report)
            await self._jobs.update(job_id, lambda job: replace(job, iteration=report.iteration))

        async def evaluated(evaluation: Evaluation) -> None:
            await self._jobs.update(
                job_id, lambda job: replace(job, evaluations=(*job.evaluations, evaluation))
            )

        return JobEvents(reported=reported, evaluated=evaluated, progress=activity.set)

    async def _advance(self, job_id: str, state: JobState, **changes: Any) -> None:
        """Move a job on; a take-over may find it further along already."""

        def change(job: Job) -> Job:
            return replace(job, state=state, **changes)

        await self._jobs.update(job_id, change)

    async def _end(self, job_id: str, state: JobState, **changes: Any) -> None:
        with suppress(ReallocError):
            await self._advance(job_id, state, end_time=time.time(), activity="", **changes)

    async def _one(self, kind: str) -> Member:
        members = await self._members.wait_for(
            {kind: 1}, timeout_seconds=self._settings.member_timeout_seconds
        )
        return members[0]

    async def _on_devices(self, kind: str, devices: Collection[int]) -> dict[int, Member]:
        """The process of a kind on each device; waits for those that are still starting."""
        try:
            async with asyncio.timeout(self._settings.member_timeout_seconds):
                async for _ in self._members.changes():
                    present = {each.device: each for each in self._members.current(kind)}
                    if all(device in present for device in devices):
                        return {device: present[device] for device in devices}
        except TimeoutError:
            pass
        present = {each.device: each for each in self._members.current(kind)}
        missing = sorted(set(devices) - set(present))
        raise NotFound(f"no {kind} shard is registered for device {', '.join(map(str, missing))}")


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
