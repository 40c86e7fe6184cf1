"""What the registry and the records of the param-store keep, on every kind of store."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.core.model import Head
from services.param_store.model import Model
from services.param_store.orders import nothing_moved
from services.param_store.phases import Phase
from services.param_store.records import ReallocationRecord, RecordedParticipant, Records
from services.param_store.registry import Registry
from tests.contract.store_backends import StoreBackend
from tests.support.toy_store import MODEL, SOURCE, TARGET


def model(backend: StoreBackend, model_id: str = "actor", **changes: object) -> Model:
    """A model of a job of this test only: the etcd is shared."""
    return replace(MODEL, job_id=job_of(backend), model_id=model_id, **changes)


def job_of(backend: StoreBackend) -> str:
    return backend.prefix.strip("/").replace("/", "-")


async def test_the_same_registration_again_changes_nothing(backend: StoreBackend) -> None:
    """Idempotent; another model under the name is a conflict, and the first one stays."""
    registry = Registry(await backend.open())
    actor = model(backend)
    assert await registry.register(actor) == actor
    await registry.set_version(actor.job_id, "actor", TARGET, 3)
    assert (await registry.register(actor)).source.weight_version == 3
    with pytest.raises(Conflict, match="another model named actor"):
        await registry.register(replace(actor, head=Head.VALUE))
    other = replace(SOURCE, shards=("trainer-2", "trainer-3"))
    with pytest.raises(Conflict):
        await registry.register(replace(actor, layouts=(other,)))
    assert (await registry.get(actor.job_id, "actor")).head is Head.LM


async def test_what_can_never_be_moved_is_refused(backend: StoreBackend) -> None:
    """Names that are no keys, and configurations that are none: with the field's path."""
    registry = Registry(await backend.open())
    with pytest.raises(InvalidInput) as caught:
        await registry.register(replace(MODEL, job_id="a/b", model_id=""))
    assert {problem.path for problem in caught.value.problems} == {
        "model.job_id",
        "model.model_id",
    }
    with pytest.raises(InvalidInput, match="is not JSON"):
        await registry.register(model(backend, hf_config="{"))


async def test_versions_only_go_forward(backend: StoreBackend) -> None:
    """The target and the source have the version; an older one is refused."""
    registry = Registry(await backend.open())
    actor = await registry.register(model(backend))
    await registry.set_version(actor.job_id, "actor", TARGET, 2)
    await registry.set_version(actor.job_id, "actor", TARGET, 2)
    known = await registry.get(actor.job_id, "actor")
    placed = known.placed(TARGET)
    assert placed is not None
    assert [known.source.weight_version, placed.weight_version] == [2, 2]
    assert len(known.layouts) == 2
    with pytest.raises(Conflict, match="cannot go back to 1"):
        await registry.set_version(actor.job_id, "actor", TARGET, 1)


async def test_jobs_are_listed_watched_and_released(backend: StoreBackend) -> None:
    """A watch shows every change and ends with the job; another job is not touched."""
    store = await backend.open()
    registry = Registry(store)
    actor, critic = model(backend), model(backend, "critic", head=Head.VALUE)
    await registry.register(critic)
    await registry.register(actor)
    assert [each.model_id for each in await registry.list(actor.job_id)] == ["actor", "critic"]
    seen: list[int] = []
    shown = asyncio.Event()

    async def watch() -> None:
        async with aclosing(registry.watch(actor.job_id, "actor")) as changes:
            async for change in changes:
                seen.append(change.source.weight_version)
                shown.set()

    watching = asyncio.create_task(watch())
    await shown.wait()
    await registry.set_version(actor.job_id, "actor", TARGET, 1)
    await registry.release(actor.job_id)
    await watching
    assert seen == [0, 1]
    assert await registry.list(actor.job_id) == ()
    with pytest.raises(NotFound):
        await registry.get(actor.job_id, "actor")


def record(backend: StoreBackend) -> ReallocationRecord:
    return ReallocationRecord(
        request_id="one",
        job_id=job_of(backend),
        model_id="actor",
        target=replace(TARGET, weight_version=1, incarnations=("a", "b")),
        session_id="session",
        participants=(
            RecordedParticipant(name="trainer-0", incarnation="t", is_destination=False),
        ),
        phase=Phase.PREPARING,
    )


async def test_of_two_who_drive_a_record_one_goes_on(backend: StoreBackend) -> None:
    """Whoever writes first has it; the other one can neither commit nor abort."""
    records = Records(await backend.open())
    mine = await records.new(record(backend))
    await mine.begin(5.0)
    theirs = (await Records(await backend.open()).list(job_of(backend)))[0]
    assert theirs.value == mine.value
    await theirs.advance(Phase.ABORTED)
    with pytest.raises(Conflict, match="taken over"):
        await mine.advance(Phase.COMMITTING, outcome=nothing_moved(1))
    assert [each.value.phase for each in await records.list(job_of(backend))] == [Phase.ABORTED]


async def test_the_outcome_is_kept_until_the_job_is_released(backend: StoreBackend) -> None:
    """A record is one per target: the next reallocation takes its place."""
    records = Records(await backend.open())
    first = await records.new(record(backend))
    await first.begin(5.0)
    await first.advance(Phase.COMMITTING, outcome=nothing_moved(1))
    await first.advance(Phase.COMMITTED, outcome=nothing_moved(1))
    kept = await records.list(job_of(backend), "actor")
    assert [each.value.outcome for each in kept] == [nothing_moved(1)]
    second = await records.new(replace(record(backend), request_id="two"))
    await second.begin(5.0)
    kept = await records.list(job_of(backend), "actor")
    assert [each.value.request_id for each in kept] == ["two"]
    await records.release(job_of(backend))
    assert await records.list(job_of(backend)) == ()
