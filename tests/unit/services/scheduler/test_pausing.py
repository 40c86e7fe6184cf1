"""Before a cluster goes away every job is paused that can be, and nobody waits for ever."""

import asyncio
from dataclasses import replace

from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.experiment import CheckpointSettings, DataSettings, Experiment, ModelSettings
from realloc.core.job import Job, JobState, Wanted
from services.scheduler.job_store import JobStore
from services.scheduler.pausing import pause_jobs


def job(job_id: str, folder: str) -> Job:
    experiment = Experiment(
        name="test",
        algorithm="sft",
        iterations=3,
        actor=ModelSettings(checkpoint="/m"),
        data=DataSettings(path="/d", batch_size=2),
        checkpoint=CheckpointSettings(folder=folder),
    )
    return Job(job_id=job_id, experiment=experiment)


async def running(jobs: JobStore, job_id: str, folder: str) -> None:
    await jobs.create(job(job_id, folder))
    for state in (JobState.PLANNING, JobState.QUEUED, JobState.STARTING, JobState.RUNNING):
        await jobs.move(job_id, state)


def test_jobs_pause_and_those_that_cannot_are_left_alone() -> None:
    """A queued job pauses at once, a running one when its runner has saved it; one without a
    folder is not waited for."""

    async def scenario() -> None:
        async with MemoryStore(MemoryDatabase()) as store:
            jobs = JobStore(store)
            await jobs.create(job("queued", ""))
            await running(jobs, "saved", "/state")
            await running(jobs, "lost", "")

            async def runner() -> None:
                async for each in jobs.watch_all():
                    if each.wanted is Wanted.PAUSE and not each.state.is_at_rest:
                        await jobs.update(
                            each.job_id, lambda job: replace(job, state=JobState.PAUSED)
                        )

            obeying = asyncio.create_task(runner())
            await pause_jobs(jobs, timeout_seconds=30.0)
            states = {each.job_id: each.state for each in await jobs.list()}
            assert states == {
                "queued": JobState.PAUSED,
                "saved": JobState.PAUSED,
                "lost": JobState.RUNNING,
            }
            obeying.cancel()

    asyncio.run(scenario())


def test_a_job_that_never_pauses_is_given_up() -> None:
    """After the time the scheduler may stop; what was asked stays asked."""

    async def scenario() -> None:
        async with MemoryStore(MemoryDatabase()) as store:
            jobs = JobStore(store)
            await running(jobs, "slow", "/state")
            await pause_jobs(jobs, timeout_seconds=0.05)
            slow = await jobs.get("slow")
            assert (slow.state, slow.wanted) == (JobState.RUNNING, Wanted.PAUSE)

    asyncio.run(scenario())
