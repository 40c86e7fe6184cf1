"""Jobs in the store keep to the transition table."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.errors import Conflict, NotFound
from realloc.core.experiment import DataSettings, Experiment, ModelSettings
from realloc.core.job import IterationReport, Job, JobState
from services.scheduler.job_store import JobChange, JobStore

EXPERIMENT = Experiment(
    name="test",
    algorithm="sft",
    iterations=3,
    actor=ModelSettings(checkpoint="/m"),
    data=DataSettings(path="/d", batch_size=2),
)


def with_store(scenario: Callable[[JobStore], Awaitable[None]]) -> None:
    async def run() -> None:
        async with MemoryStore(MemoryDatabase()) as store, asyncio.timeout(10):
            await scenario(JobStore(store))

    asyncio.run(run())


def job(job_id: str = "one", **fields: object) -> Job:
    return Job(job_id=job_id, experiment=EXPERIMENT, **fields)  # type: ignore[arg-type]  # fields of Job


def test_a_job_comes_back_as_it_was_stored() -> None:
    """Every field survives the way through the store."""

    async def scenario(jobs: JobStore) -> None:
        stored = await jobs.create(job(submit_time=12.5, request_id="r"))
        assert await jobs.get("one") == stored

    with_store(scenario)


def test_a_repeated_request_returns_the_first_job() -> None:
    """One request id is one job."""

    async def scenario(jobs: JobStore) -> None:
        await jobs.create(job("one", request_id="r"))
        assert (await jobs.create(job("two", request_id="r"))).job_id == "one"
        assert [each.job_id for each in await jobs.list()] == ["one"]

    with_store(scenario)


def test_a_forbidden_transition_is_a_conflict() -> None:
    """A pending job cannot have succeeded."""

    async def scenario(jobs: JobStore) -> None:
        await jobs.create(job())
        with pytest.raises(Conflict, match="pending and cannot become succeeded"):
            await jobs.move("one", JobState.SUCCEEDED)

    with_store(scenario)


def test_a_job_that_has_ended_stays_as_it_is() -> None:
    """Whoever is late changes nothing."""

    async def scenario(jobs: JobStore) -> None:
        await jobs.create(job())
        await jobs.move("one", JobState.CANCELLED)
        assert (await jobs.move("one", JobState.FAILED, error="late")).state is JobState.CANCELLED

    with_store(scenario)


def test_a_watch_brings_each_report_once_and_ends_with_the_job() -> None:
    """Reports come in order, before the job that counts them; a later watcher can skip some."""

    async def scenario(jobs: JobStore) -> None:
        await jobs.create(job())
        seen: list[JobChange] = []

        async def follow() -> None:
            async for change in jobs.watch("one", after_iteration=0):
                seen.append(change)

        task = asyncio.create_task(follow())
        for state in (JobState.PLANNING, JobState.QUEUED, JobState.STARTING, JobState.RUNNING):
            await jobs.move("one", state)
        for iteration in (1, 2, 3):
            await jobs.add_report("one", IterationReport(iteration=iteration, seconds=0.5))
            await jobs.move("one", JobState.RUNNING, iteration=iteration)
        await jobs.move("one", JobState.SUCCEEDED)
        await task
        assert [each.report.iteration for each in seen if each.report] == [1, 2, 3]
        assert seen[-1].job.state is JobState.SUCCEEDED
        late = [change async for change in jobs.watch("one", after_iteration=2)]
        assert [each.report.iteration for each in late if each.report] == [3]

    with_store(scenario)


def test_a_job_that_is_not_there_is_not_found() -> None:
    """Get, watch and change say so."""

    async def scenario(jobs: JobStore) -> None:
        with pytest.raises(NotFound):
            await jobs.get("absent")
        with pytest.raises(NotFound):
            await jobs.move("absent", JobState.CANCELLED)
        with pytest.raises(NotFound):
            await anext(jobs.watch("absent", after_iteration=0))

    with_store(scenario)
