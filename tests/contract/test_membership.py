"""Membership over each Store: who registers is seen, who leaves is missed at once."""

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest

from realloc.coordination.members import ChangeKind, MemberChange, Members
from realloc.coordination.membership import Member, Registration, forget_members
from realloc.coordination.store import Store
from realloc.core.errors import NotFound, Unavailable
from tests.contract.store_backends import StoreBackend

SILENT_SECONDS = 2
"""TTL of a member that is to fall silent."""


def trainer(backend: StoreBackend, index: int, incarnation: str = "1") -> Member:
    """A trainer of a kind of this test only."""
    return Member(
        kind="trainer-" + backend.prefix.split("/")[2],
        name=f"trainer-{index}",
        address=f"127.0.0.1:{5000 + index}",
        incarnation=incarnation,
        host="localhost",
        device=index,
        node=0,
        labels={"dtype": "float32"},
    )


def registered(store: Store, member: Member, ttl_seconds: int = 60) -> Registration:
    """A registration which, unless a shorter time is asked for, outlives the test."""
    return Registration(store, member, ttl_seconds=ttl_seconds)


async def test_members_are_seen_as_they_come_and_go(backend: StoreBackend) -> None:
    """Members who register are present, in the order of their devices, until they withdraw."""
    store, watcher = await backend.open(), await backend.open()
    first, second, eleventh = (trainer(backend, index) for index in (1, 2, 11))
    async with Members(watcher, first.kind) as members, contextlib.AsyncExitStack() as stack:
        assert members.current() == ()
        await stack.enter_async_context(registered(store, eleventh))
        await stack.enter_async_context(registered(store, first))
        async with registered(store, second):
            there = await members.wait_for({first.kind: 3}, timeout_seconds=20)
            assert there == (first, second, eleventh)
            assert members.get(first.kind, "trainer-2") == second
        async with asyncio.timeout(20):
            assert await members.wait_left([first, second]) == second
        assert members.current(first.kind) == (first, eleventh)
        with pytest.raises(NotFound, match="there are trainer-1, trainer-11"):
            members.get(first.kind, "trainer-2")


async def test_waiting_for_members_names_who_is_there(backend: StoreBackend) -> None:
    """Too few members in time: the error says how many are wanted and who is there."""
    store = await backend.open()
    member = trainer(backend, 0)
    async with Members(store, member.kind) as members, registered(store, member):
        await members.wait_for({member.kind: 1}, timeout_seconds=20)
        with pytest.raises(Unavailable, match=r"after 0\.1 s: 2 .* wanted, there are trainer-0"):
            await members.wait_for({member.kind: 2}, timeout_seconds=0.1)


async def test_a_member_that_falls_silent_leaves(backend: StoreBackend) -> None:
    """A member that is cut off has left after its TTL, and is back when it is connected."""
    store, watcher = await backend.open(), await backend.open()
    member = trainer(backend, 0)
    began = time.monotonic()
    async with (
        Members(watcher, member.kind) as members,
        registered(store, member, SILENT_SECONDS),
    ):
        await members.wait_for({member.kind: 1}, timeout_seconds=20)
        backend.cut_off(store)
        assert await members.wait_left([member]) == member
        assert time.monotonic() - began >= SILENT_SECONDS
        backend.heal(store)
        assert await members.wait_for({member.kind: 1}, timeout_seconds=20) == (member,)


async def test_a_watcher_that_is_cut_off_keeps_what_it_knows(backend: StoreBackend) -> None:
    """Nobody leaves because the watcher's own connection is silent; it catches up afterwards."""
    store, watcher = await backend.open(), await backend.open()
    stays, leaves = trainer(backend, 0), trainer(backend, 1)
    async with Members(watcher, stays.kind) as members, registered(store, stays):
        async with registered(store, leaves):
            await members.wait_for({stays.kind: 2}, timeout_seconds=20)
            backend.cut_off(watcher)
        await asyncio.sleep(0.2)
        assert members.current() == (stays, leaves)
        backend.heal(watcher)
        async with asyncio.timeout(20):
            assert await members.wait_left([stays, leaves]) == leaves


async def test_a_restarted_member_replaces_its_former_self(backend: StoreBackend) -> None:
    """A new incarnation takes the name at once: the old one has left and is told."""
    old_store, new_store = await backend.open(), await backend.open()
    old, new = trainer(backend, 0, "old"), trainer(backend, 0, "new")
    async with (
        Members(new_store, old.kind) as members,
        registered(old_store, old) as old_registration,
    ):
        await members.wait_for({old.kind: 1}, timeout_seconds=20)
        async with registered(new_store, new):
            assert await members.wait_left([old]) == old
            assert await members.wait_for({old.kind: 1}, timeout_seconds=20) == (new,)
            async with asyncio.timeout(20):
                await old_registration.replaced.wait()
            await old_registration.withdraw()
            await asyncio.sleep(0.1)
            assert members.current() == (new,)


async def test_an_old_incarnation_does_not_come_back(backend: StoreBackend) -> None:
    """A process that was cut off while its successor registered does not take the name back."""
    old_store, new_store = await backend.open(), await backend.open()
    old, new = trainer(backend, 0, "old"), trainer(backend, 0, "new")
    async with (
        Members(new_store, old.kind) as members,
        registered(old_store, old, SILENT_SECONDS) as old_registration,
    ):
        backend.cut_off(old_store)
        async with registered(new_store, new):
            await members.wait_for({old.kind: 1}, timeout_seconds=20)
            await asyncio.sleep(1.5 * SILENT_SECONDS)
            backend.heal(old_store)
            async with asyncio.timeout(20):
                await old_registration.replaced.wait()
            assert members.current() == (new,)


async def test_a_member_whose_key_is_deleted_registers_again(backend: StoreBackend) -> None:
    """A deletion by an operator is repaired by the member itself."""
    store, operator = await backend.open(), await backend.open()
    member = trainer(backend, 0)
    async with Members(operator, member.kind) as members, registered(store, member):
        await members.wait_for({member.kind: 1}, timeout_seconds=20)
        entry = await operator.get(member.key)
        assert entry is not None
        await operator.delete(member.key)
        await operator.wait_changed(entry)
        async with asyncio.timeout(20):
            while not (again := await operator.get(member.key)):
                await asyncio.sleep(0.01)
        assert again.value == entry.value
        assert await members.wait_for({member.kind: 1}, timeout_seconds=20) == (member,)


async def test_changes_tell_who_joined_and_left(backend: StoreBackend) -> None:
    """Changes begin with who is there; a restart is a leave and a join."""
    store = await backend.open()
    first, second = trainer(backend, 0), trainer(backend, 1)
    restarted = replace(first, incarnation="2")
    async with Members(store, first.kind) as members, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(registered(store, first))
        await members.wait_for({first.kind: 1}, timeout_seconds=20)
        async with contextlib.aclosing(members.changes()) as changes:
            joined = MemberChange(kind=ChangeKind.JOINED, member=first)
            assert await anext(changes) == joined
            await stack.enter_async_context(registered(store, second))
            assert await anext(changes) == MemberChange(kind=ChangeKind.JOINED, member=second)
            await stack.enter_async_context(registered(store, restarted))
            assert await anext(changes) == MemberChange(kind=ChangeKind.LEFT, member=first)
            assert await anext(changes) == MemberChange(kind=ChangeKind.JOINED, member=restarted)


async def test_an_unreadable_member_is_passed_over(backend: StoreBackend) -> None:
    """A value that is no member hides nobody else, and the error of a wait tells of it."""
    store = await backend.open()
    member = trainer(backend, 0)
    await store.put(replace(member, name="broken").key, b"\xff{")
    async with Members(store, member.kind) as members, registered(store, member):
        assert await members.wait_for({member.kind: 1}, timeout_seconds=20) == (member,)
        with pytest.raises(Unavailable, match="broken is unreadable"):
            await members.wait_for({member.kind: 2}, timeout_seconds=0.1)


async def test_members_that_are_not_followed_are_not_waited_for(backend: StoreBackend) -> None:
    """Closing tells those who wait that nobody follows the members any more."""
    store = await backend.open()
    member = trainer(backend, 0)
    async with registered(store, member), Members(store, member.kind) as members:
        waiting = asyncio.create_task(members.wait_left([member]))
        await asyncio.sleep(0.05)
        await members.close()
        with pytest.raises(Unavailable, match="not followed"):
            async with asyncio.timeout(20):
                await waiting


async def test_only_the_living_come_back_after_all_were_forgotten(backend: StoreBackend) -> None:
    """Registrations of processes that are gone stay gone; those that live register again."""
    store = await backend.open()
    alive = trainer(backend, 0)
    dead = [trainer(backend, index) for index in range(1, 203)]
    async with Members(store, alive.kind) as members, registered(store, alive):
        for member in dead:
            await store.transact(put={member.key: member.to_json()})
        await members.wait_for({alive.kind: 1 + len(dead)}, timeout_seconds=60)
        await forget_members(store)
        async with asyncio.timeout(60):
            async for _ in members.changes():
                if members.current() == (alive,):
                    break
