"""Which jobs a leader takes up, by what the store says of them."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from realloc.coordination.members import Members
from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.experiment import DataSettings, Experiment, ModelSettings
from realloc.core.job import Job, JobState
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.job_store import JobStore

EXPERIMENT = Experiment(
    name="test",
    algorithm="sft",
    iterations=3,
    actor=ModelSettings(checkpoint="/m"),
    data=DataSettings(path="/d", batch_size=2),
)


class LateJobs(JobStore):
    """Its watch tells what was true before, waits until the leader did what it wants, and ends."""

    def __init__(self, store: MemoryStore, *told: Job) -> None:
        super().__init__(store)
        self._told = told

    async def watch_all(self) -> AsyncGenerator[Job, None]:
        for job in self._told:
            yield job
        while any(task.get_name().startswith("job ") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


def admitted(state: JobState) -> list[Experiment]:
    """What a leader begins to work on that is told of a running job which is in this state."""
    seen: list[Experiment] = []

    def admit(experiment: Experiment) -> Any:
        seen.append(experiment)
        raise InvalidInput.at("data", "is not there")

    async def scenario() -> None:
        async with MemoryStore(MemoryDatabase()) as store, Members(store) as members:
            jobs = JobStore(store)
            await jobs.create(Job(job_id="one", experiment=EXPERIMENT, state=state))
            told = Job(job_id="one", experiment=EXPERIMENT, state=JobState.RUNNING)
            dispatcher = Dispatcher(
                jobs=LateJobs(store, told),
                members=members,
                connect=lambda address: None,  # type: ignore[arg-type, return-value]
                settings=SimpleNamespace(admit=admit),  # type: ignore[arg-type]
            )
            async with asyncio.timeout(60):
                try:
                    await dispatcher.run()
                except Unavailable:
                    return

    asyncio.run(scenario())
    return seen


def test_a_job_that_has_ended_is_not_taken_up_again() -> None:
    """Also where the watch is behind, and still tells of its last iteration."""
    assert admitted(JobState.SUCCEEDED) == []
    assert admitted(JobState.PENDING) == [EXPERIMENT]
