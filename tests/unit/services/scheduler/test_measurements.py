"""What is measured of jobs, from what stands in the store."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from realloc.client.experiment_file import parse_experiment
from realloc.coordination.members import Members
from realloc.coordination.membership import Member, Registration
from realloc.coordination.memory_database import MemoryDatabase
from realloc.coordination.memory_store import MemoryStore
from realloc.core.job import Evaluation, IterationReport, Job, JobState, StageReport
from realloc.core.mesh import Cluster
from realloc.telemetry import spans
from realloc.telemetry.names import Metric
from services.scheduler.job_store import JobStore
from services.scheduler.measurements import JobMeasurements, observe_cluster

REPORT = IterationReport(
    iteration=1,
    seconds=3.0,
    metrics={
        "reward/mean": 0.25,
        "actor/kl_to_ref": 0.125,
        "actor/loss": 2.0,
        "critic/loss": 4.0,
        "critic/grad_norm": 8.0,
        "train_rollout_logprob_abs_diff_max": 1e-5,
    },
    stages=(
        StageReport(
            name="reallocate:actor", model_seconds=0.1, predicted_seconds=0.1, measured_seconds=0.2
        ),
        StageReport(
            name="actor_gen", model_seconds=1.0, predicted_seconds=1.0, measured_seconds=2.0
        ),
    ),
)


@pytest.fixture
def reader(monkeypatch) -> InMemoryMetricReader:
    """What was recorded since the test began."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    spans._recorder.cache_clear()
    yield reader
    spans._recorder.cache_clear()


def recorded(reader: InMemoryMetricReader) -> Mapping[tuple[str, ...], Any]:
    """Value by metric and attribute values; of histograms the sum."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        (metric.name, *map(str, point.attributes.values())): getattr(
            point, "value", getattr(point, "sum", None)
        )
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def running_job(**changes: Any) -> Job:
    experiment = parse_experiment(
        {
            "name": "test",
            "algorithm": "sft",
            "iterations": 2,
            "actor": {"checkpoint": "model"},
            "data": {"path": "rows.jsonl", "batch_size": 2},
        }
    )
    return Job(job_id="job-1", experiment=experiment, state=JobState.RUNNING, **changes)


def test_an_iteration_is_recorded_once(reader):
    """Its seconds, the measured and predicted seconds of its calls, and the job's gauges; seeing
    the same job again, or taking it over in its second iteration, records nothing anew."""

    async def story() -> None:
        jobs = JobStore(MemoryStore(MemoryDatabase()))
        await jobs.add_report("job-1", REPORT)
        measured = JobMeasurements(jobs)
        await measured.changed(running_job())
        await measured.changed(running_job(iteration=1))
        await measured.changed(running_job(iteration=1, activity="actor_gen"))
        await JobMeasurements(jobs).changed(running_job(iteration=1))

    asyncio.run(story())
    assert recorded(reader) == {
        (Metric.ITERATION_SECONDS, "job-1"): 3.0,
        (Metric.CALL_SECONDS, "job-1", "actor_gen"): 2.0,
        (Metric.CALL_PREDICTED_SECONDS, "job-1", "actor_gen"): 1.0,
        (Metric.REWARD, "job-1"): 0.25,
        (Metric.KL, "job-1"): 0.125,
        (Metric.LOSS, "job-1", "actor"): 2.0,
        (Metric.LOSS, "job-1", "critic"): 4.0,
        (Metric.GRAD_NORM, "job-1", "critic"): 8.0,
        (Metric.LOGPROB_DIFFERENCE, "job-1"): 1e-5,
    }


def test_a_job_is_idle_since_its_last_iteration_or_evaluation(reader):
    """Starting, iterations and evaluations are progress, phrases are not; only running jobs are
    idle."""
    clock = [0.0]

    async def story() -> None:
        jobs = JobStore(MemoryStore(MemoryDatabase()))
        await jobs.add_report("job-1", REPORT)
        measured = JobMeasurements(jobs, now=lambda: clock[0])
        await measured.changed(replace(running_job(), state=JobState.QUEUED))
        assert measured.idle_seconds() == {}
        await measured.changed(running_job())
        clock[0] = 10.0
        await measured.changed(running_job(activity="actor_gen 3/8"))
        assert measured.idle_seconds() == {"job-1": 10.0}
        await measured.changed(running_job(iteration=1))
        clock[0] = 15.0
        assert measured.idle_seconds() == {"job-1": 5.0}
        held_out = Evaluation(iteration=1, reward=1.0, num_prompts=1, weight_version=1)
        await measured.changed(running_job(iteration=1, evaluations=(held_out,)))
        assert measured.idle_seconds() == {"job-1": 0.0}
        ended = replace(running_job(iteration=1), state=JobState.SUCCEEDED)
        await measured.changed(ended)
        await measured.changed(ended)
        assert measured.idle_seconds() == {}

    asyncio.run(story())
    assert recorded(reader)[(Metric.JOBS_ENDED, "succeeded")] == 1


def test_jobs_are_followed_in_the_store(reader):
    """What the dispatcher writes is measured without its help."""

    async def story() -> None:
        jobs = JobStore(MemoryStore(MemoryDatabase()))
        async with JobMeasurements(jobs).following():
            await jobs.create(replace(running_job(), state=JobState.PENDING))
            for state in (JobState.PLANNING, JobState.QUEUED, JobState.STARTING):
                await jobs.move("job-1", state)
            await jobs.move("job-1", JobState.FAILED, error="why not")
            async with asyncio.timeout(10):
                while (Metric.JOBS_ENDED, "failed") not in recorded(reader):
                    await asyncio.sleep(0.01)

    asyncio.run(story())


def test_members_and_devices_are_observed(reader):
    """A kind without members counts 0, so that an alert can compare it."""

    async def story() -> None:
        store = MemoryStore(MemoryDatabase())
        member = Member(
            kind="trainer", name="trainer-0", address="a:1", incarnation="x", host="h", device=0
        )
        cluster = Cluster(
            num_nodes=2, devices_per_node=4, device_kind="H100", device_memory_bytes=1
        )
        async with Registration(store, member), Members(store) as members:
            observe_cluster(members, cluster, JobMeasurements(JobStore(store)))
            found = recorded(reader)
        assert found[(Metric.MEMBERS, "trainer")] == 1
        assert found[(Metric.MEMBERS, "generation")] == 0
        assert found[(Metric.DEVICES, "H100")] == 8

    asyncio.run(story())
