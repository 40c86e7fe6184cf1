"""A job finds the processes of its devices, but none that is known to be gone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.coordination.memory_store import MemoryDatabase, MemoryStore
from realloc.core.errors import NotFound, Unavailable
from services.scheduler.job_members import JobMembers


def member(kind: str, name: str, incarnation: str, device: int | None = None) -> Member:
    return Member(
        kind=kind,
        name=name,
        address=f"{name}:1",
        incarnation=incarnation,
        host="here",
        device=device,
    )


FIRST, SECOND = (member("trainer", f"trainer-{device}", "old", device) for device in (0, 1))


async def alive(member: Member) -> bool:
    return True


def with_members(scenario: Callable[[MemoryStore, Members], Awaitable[None]]) -> None:
    async def run() -> None:
        async with MemoryStore(MemoryDatabase()) as store, asyncio.timeout(10):
            for each in (FIRST, SECOND):
                await store.put(each.key, each.to_json())
            async with Members(store) as members:
                await scenario(store, members)

    asyncio.run(run())


def test_devices_find_their_processes() -> None:
    """In the order in which the devices are named."""

    async def scenario(store: MemoryStore, members: Members) -> None:
        found = await JobMembers(members, alive, timeout_seconds=5).on_devices("trainer", (1, 0))
        assert list(found.items()) == [(1, SECOND), (0, FIRST)]

    with_members(scenario)


def test_one_that_is_gone_is_waited_for_although_its_lease_lasts() -> None:
    """The process that died still stands in the store; only its successor will do."""

    async def scenario(store: MemoryStore, members: Members) -> None:
        wanted = JobMembers(members, alive, timeout_seconds=5, gone=[SECOND])
        waiting = asyncio.create_task(wanted.on_devices("trainer", (0, 1)))
        await asyncio.sleep(0)
        new = member("trainer", "trainer-1", "new", 1)
        await store.put(new.key, new.to_json())
        assert await waiting == {0: FIRST, 1: new}

    with_members(scenario)


def test_one_that_gives_no_sign_of_life_is_waited_for() -> None:
    """Nobody knew that it was gone: it is asked, and only its successor will do."""

    async def scenario(store: MemoryStore, members: Members) -> None:
        asked, silent = [], asyncio.Event()

        async def is_alive(member: Member) -> bool:
            asked.append(member)
            if member == SECOND:
                silent.set()
            return member != SECOND

        wanted = JobMembers(members, is_alive, timeout_seconds=5)
        waiting = asyncio.create_task(wanted.on_devices("trainer", (0, 1)))
        await silent.wait()
        new = member("trainer", "trainer-1", "new", 1)
        await store.put(new.key, new.to_json())
        assert await waiting == {0: FIRST, 1: new}
        assert asked == [FIRST, SECOND, FIRST, new]

    with_members(scenario)


def test_what_is_missing_is_named() -> None:
    """After the time the devices without a process are told."""

    async def scenario(store: MemoryStore, members: Members) -> None:
        wanted = JobMembers(members, alive, timeout_seconds=0.05, gone=[FIRST])
        with pytest.raises(NotFound, match="no trainer shard is registered for device 0, 7"):
            await wanted.on_devices("trainer", (0, 1, 7))
        with pytest.raises(Unavailable, match="no param_store is registered"):
            await wanted.one("param_store")

    with_members(scenario)
