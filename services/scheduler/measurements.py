"""What is measured of every job: its iterations, their calls, how it ended, whether it moves."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from realloc.coordination.members import Members
from realloc.core.errors import ReallocError
from realloc.core.job import IterationReport, Job, JobState
from realloc.core.mesh import Cluster
from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.spans import Attributes, observe, record
from services.scheduler.job_store import JobStore

PAUSE_SECONDS = 1.0
"""Pause before the jobs are followed again, after the store could not be reached."""

_GAUGES = {
    "reward/mean": Metric.REWARD,
    "actor/kl_to_ref": Metric.KL,
    "train_rollout_logprob_abs_diff_max": Metric.LOGPROB_DIFFERENCE,
}
"""Metrics of a report that are gauges of the job."""
_GAUGES_OF_MODELS = {"loss": Metric.LOSS, "grad_norm": Metric.GRAD_NORM}
"""The same for ``MODEL/metric``."""

KINDS = ("scheduler", "plan_search", "param_store", "trainer", "generation")
"""What is counted among the members; one of which there is none counts 0."""
REALLOCATE = "reallocate:"
"""Stages that param-store measures."""


class JobMeasurements:
    """Follows the jobs in the store and records what they do; for the leader only, so that
    nothing is counted twice."""

    def __init__(self, jobs: JobStore, now: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._now = now
        self._known: dict[str, Job] = {}
        self._moved: dict[str, float] = {}

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the jobs as long as the context is open."""
        task = asyncio.create_task(self._follow(), name="measurements")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._known.clear()
            self._moved.clear()

    def idle_seconds(self) -> Mapping[str, float]:
        """Seconds since each running job moved, by job. Any thread may ask."""
        now = self._now()
        return {job_id: now - moved for job_id, moved in list(self._moved.items())}

    async def changed(self, job: Job) -> None:
        """A job is as it is now; what happened since it was seen last is recorded."""
        before = self._known.get(job.job_id, job)
        self._known[job.job_id] = job
        for iteration in range(before.iteration + 1, job.iteration + 1):
            self.reported(job.job_id, await self._jobs.report(job.job_id, iteration))
        if job.state is not JobState.RUNNING:
            self._moved.pop(job.job_id, None)
        elif job.job_id not in self._moved or _progress(before) != _progress(job):
            self._moved[job.job_id] = self._now()
        if job.state.is_at_rest and not before.state.is_at_rest:
            record(Metric.JOBS_ENDED, 1, {Attribute.OUTCOME: job.state.value})

    async def _follow(self) -> None:
        while True:
            with suppress(ReallocError):
                async for job in self._jobs.watch_all():
                    await self.changed(job)
            await asyncio.sleep(PAUSE_SECONDS)

    def reported(self, job_id: str, report: IterationReport) -> None:
        """A job has ended an iteration."""
        job: Attributes = {Attribute.JOB_ID: job_id}
        record(Metric.ITERATION_SECONDS, report.seconds, job)
        for stage in report.stages:
            if not stage.name.startswith(REALLOCATE):
                call: Attributes = {**job, Attribute.CALL: stage.name}
                record(Metric.CALL_SECONDS, stage.measured_seconds, call)
                record(Metric.CALL_PREDICTED_SECONDS, stage.predicted_seconds, call)
        for name, value in report.metrics.items():
            self._gauge(name, value, job)

    def _gauge(self, name: str, value: float, job: Attributes) -> None:
        model, _, of_model = name.partition("/")
        if name in _GAUGES:
            record(_GAUGES[name], value, job)
        elif of_model in _GAUGES_OF_MODELS:
            record(_GAUGES_OF_MODELS[of_model], value, {**job, Attribute.MODEL_ID: model})


def _progress(job: Job) -> tuple[int, int]:
    return job.iteration, len(job.evaluations)


def observe_cluster(members: Members, cluster: Cluster, jobs: JobMeasurements) -> None:
    """Let members, devices and idle jobs be read at each export; once per process."""

    def by_kind() -> Mapping[str, float]:
        counted = Counter(member.kind for member in members.current())
        return {kind: counted[kind] for kind in KINDS}

    observe(Metric.MEMBERS, by_kind, Attribute.MEMBER_KIND)
    observe(
        Metric.DEVICES, lambda: {cluster.device_kind: cluster.num_devices}, Attribute.DEVICE_KIND
    )
    observe(Metric.JOB_IDLE_SECONDS, jobs.idle_seconds, Attribute.JOB_ID)
