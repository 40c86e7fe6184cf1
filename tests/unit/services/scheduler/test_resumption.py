"""Who may begin in a folder, and who may go on from it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.errors import Conflict, InvalidInput
from realloc.core.experiment import CheckpointSettings, Experiment
from realloc.core.job import Evaluation, Job, JobState
from realloc.core.mesh import Cluster
from services.scheduler.admission import admit
from services.scheduler.job_store import JobStore
from services.scheduler.resumption import Resumption
from tests.support.running_cluster import experiment, write_task
from tests.support.saved_jobs import report, save_job

ADMIT = partial(
    admit,
    cluster=Cluster(
        num_nodes=1, devices_per_node=2, device_kind="cpu", device_memory_bytes=4 << 30
    ),
    reward_roots=[Path("/")],
)
EVALUATIONS = tuple(
    Evaluation(iteration=each, reward=0.5, num_prompts=4, weight_version=2 * each)
    for each in (0, 1)
)


@pytest.fixture
def work(tmp_path: Path) -> Experiment:
    write_task(tmp_path)
    return experiment(tmp_path, "ppo", checkpoint={"folder": str(tmp_path / "state")})


def with_jobs(scenario: Callable[[JobStore, Resumption], Awaitable[None]]) -> None:
    async def run() -> None:
        async with MemoryStore(MemoryDatabase()) as store, asyncio.timeout(20):
            jobs = JobStore(store)
            await scenario(jobs, Resumption(jobs, ADMIT))

    asyncio.run(run())


def new_job(work: Experiment, job_id: str = "new") -> Job:
    return Job(job_id=job_id, experiment=work, request_id=f"request of {job_id}")


def test_a_folder_with_checkpoints_is_not_taken_over_by_accident(work: Experiment) -> None:
    """A new job says that it goes on, and then has the history of the job before it."""
    save_job(ADMIT(work), evaluations=EVALUATIONS)

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        with pytest.raises(InvalidInput, match="has checkpoints of job one up to iteration 1"):
            await resumption.submit(new_job(work), resume=False, validate_only=False)
        assert await jobs.list() == ()
        job = await resumption.submit(new_job(work), resume=True, validate_only=False)
        assert (job.job_id, job.evaluations) == ("new", EVALUATIONS)
        assert await jobs.reports("new") == (report(),)

    with_jobs(scenario)


def test_an_empty_folder_begins_with_or_without_resume(work: Experiment) -> None:
    """The same command serves the first start and every later one."""

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        job = await resumption.submit(new_job(work), resume=True, validate_only=True)
        assert (job.evaluations, await jobs.list()) == ((), ())
        await resumption.submit(new_job(work), resume=True, validate_only=False)
        assert await jobs.reports("new") == ()

    with_jobs(scenario)


def test_a_repeated_request_meets_its_own_checkpoints(work: Experiment) -> None:
    """A submission whose answer was lost is repeated when the job has saved already."""

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        first = await resumption.submit(new_job(work), resume=False, validate_only=False)
        save_job(ADMIT(work))
        again = replace(new_job(work, "again"), request_id=first.request_id)
        assert await resumption.submit(again, resume=False, validate_only=False) == first

    with_jobs(scenario)


def test_one_folder_serves_one_job(work: Experiment) -> None:
    """Until it has stopped, nobody else may write there."""

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        await resumption.submit(new_job(work), resume=False, validate_only=False)
        with pytest.raises(Conflict, match="is used by job new, which is pending"):
            await resumption.submit(new_job(work, "other"), resume=True, validate_only=False)
        await jobs.move("new", JobState.CANCELLED)
        await resumption.submit(new_job(work, "other"), resume=True, validate_only=False)
        with pytest.raises(Conflict, match="is used by job other"):
            await resumption.resume_job("new")

    with_jobs(scenario)


def test_a_job_of_another_cluster_is_adopted_where_its_folder_is_now(
    work: Experiment, tmp_path: Path
) -> None:
    """It keeps its id, history and request; later checkpoints go where it was found."""
    save_job(ADMIT(work), evaluations=EVALUATIONS, request_id="r")
    moved = tmp_path / "moved"
    Path(work.checkpoint.folder).rename(moved)

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        job = await resumption.resume_folder(str(moved))
        assert (job.job_id, job.state, job.evaluations) == ("one", JobState.PENDING, EVALUATIONS)
        assert job.experiment.checkpoint == CheckpointSettings(folder=str(moved))
        assert await jobs.reports("one") == (report(),)
        with pytest.raises(Conflict, match="is pending; only a stopped job"):
            await resumption.resume_folder(str(moved))

    with_jobs(scenario)


def test_a_copy_of_a_known_job_is_refused(work: Experiment, tmp_path: Path) -> None:
    """Its id stands for the folder that it writes to."""
    save_job(ADMIT(work))

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        other = replace(work, checkpoint=CheckpointSettings(folder=str(tmp_path / "elsewhere")))
        await jobs.create(Job(job_id="one", experiment=other))
        await jobs.move("one", JobState.PAUSED)
        with pytest.raises(InvalidInput, match="is a copy: job one has its checkpoints in"):
            await resumption.resume_folder(work.checkpoint.folder)

    with_jobs(scenario)


def test_what_is_lost_is_said(work: Experiment) -> None:
    """A job that had iterations and has no checkpoint cannot go on."""

    async def scenario(jobs: JobStore, resumption: Resumption) -> None:
        await jobs.create(replace(new_job(work), iteration=7))
        await jobs.move("new", JobState.FAILED)
        with pytest.raises(InvalidInput, match="the 7 iterations of job new are lost"):
            await resumption.resume_job("new")

    with_jobs(scenario)
