"""Reports are completed with predictions that earlier reports corrected."""

import asyncio

import pytest

from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.job import IterationReport, StageReport
from services.scheduler.job_store import JobStore
from services.scheduler.recalibration import StageRecalibration
from tests.unit.services.scheduler.admitted import admission, plan


def report(iteration: int, measured: float) -> IterationReport:
    stages = tuple(
        StageReport(name=name, model_seconds=1.0, measured_seconds=measured)
        for name in ("actor_train", "reallocate:actor")
    )
    return IterationReport(iteration=iteration, seconds=2 * measured, stages=stages)


def test_later_iterations_and_jobs_are_predicted_from_earlier_ones() -> None:
    """Calls that take 1.5 times what the model says are predicted so once that was seen, also
    in the next job; another strategy of the model with them."""

    async def scenario() -> None:
        async with MemoryStore(MemoryDatabase()) as store, asyncio.timeout(10):
            admitted = admission()
            first = StageRecalibration(JobStore(store), admitted, plan(admitted))
            predicted = [
                (await first.completed(report(i, 1.5))).stages[0].predicted_seconds
                for i in range(1, 6)
            ]
            assert predicted == pytest.approx([1.0, 1.0, 1.0, 1.5, 1.5])
            other = plan(admitted, trainers="d2t1p1")
            second = StageRecalibration(JobStore(store), admitted, other)
            completed = await second.completed(report(1, 3.0))
            assert [stage.predicted_seconds for stage in completed.stages] == pytest.approx(
                [1.5, 1.5]
            )
            assert [stage.model_seconds for stage in completed.stages] == [1.0, 1.0]

    asyncio.run(scenario())


def test_unreadable_corrections_are_forgotten() -> None:
    """What another version left there costs no job: it is measured anew."""

    async def scenario() -> None:
        async with MemoryStore(MemoryDatabase()) as store, asyncio.timeout(10):
            await store.put("/realloc/corrections", b"\xff{")
            admitted = admission()
            recalibration = StageRecalibration(JobStore(store), admitted, plan(admitted))
            completed = await recalibration.completed(report(1, 1.5))
            assert completed.stages[0].predicted_seconds == 1.0

    asyncio.run(scenario())
