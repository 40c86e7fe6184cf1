"""Elections over each Store: one leader at a time, whose writes are fenced."""

import asyncio
import contextlib

import pytest

from realloc.coordination.election import Election
from realloc.coordination.leadership import LeadershipLost
from realloc.coordination.store import Compare, CompareFailed
from realloc.core.errors import Unavailable
from tests.contract.store_backends import StoreBackend

TTL_SECONDS = 60
"""Longer than any test: nobody loses a lease unless it is to."""
SILENT_SECONDS = 2
"""Of a leader that is to fall silent."""


def name_of(backend: StoreBackend) -> str:
    """An election of this test only."""
    return backend.prefix.split("/")[2]


async def test_one_leads_and_the_others_wait(backend: StoreBackend) -> None:
    """Each candidate leads in its turn, alone, until it resigns."""
    elections = [
        Election(await backend.open(), name_of(backend), ttl_seconds=TTL_SECONDS) for _ in range(4)
    ]
    assert await elections[0].leader() is None
    history: list[int] = []

    async def lead(index: int) -> None:
        leadership = await elections[index].campaign(b"%d" % index)
        async with leadership:
            leader = await elections[-1].leader()
            assert leader is not None
            assert leader.value == b"%d" % index
            history.append(index)
            await asyncio.sleep(0.05)
            assert history[-1] == index
            assert not leadership.lost.is_set()

    tasks = []
    for index in range(4):
        tasks.append(asyncio.create_task(lead(index)))
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert sorted(history) == [0, 1, 2, 3]
    assert await elections[0].leader() is None


async def test_a_silent_leader_is_replaced(backend: StoreBackend) -> None:
    """A leader that is cut off knows it before another one leads."""
    first_store, second_store = await backend.open(), await backend.open()
    first = Election(first_store, name_of(backend), ttl_seconds=SILENT_SECONDS)
    second = Election(second_store, name_of(backend), ttl_seconds=TTL_SECONDS)
    old = await first.campaign(b"first")
    campaign = asyncio.create_task(second.campaign(b"second"))
    await asyncio.sleep(0.2)
    assert not campaign.done()
    backend.cut_off(first_store)
    await old.lost.wait()
    assert not campaign.done()
    new = await campaign
    leader = await second.leader()
    assert leader is not None
    assert leader.value == b"second"
    await new.resign()


async def test_a_stale_leader_writes_nothing(backend: StoreBackend) -> None:
    """The writes of a leader that was replaced are refused, whether it has noticed or not."""
    first_store, second_store = await backend.open(), await backend.open()
    key = backend.prefix + "state"
    old = await Election(first_store, name_of(backend), ttl_seconds=SILENT_SECONDS).campaign(b"1")
    await old.store.put(key, b"old")
    await old.store.update(key, lambda entry: b"old, updated")
    backend.cut_off(first_store)
    new = await Election(second_store, name_of(backend), ttl_seconds=TTL_SECONDS).campaign(b"2")
    await new.store.put(key, b"new")
    backend.heal(first_store)
    for write in (
        old.store.put(key, b"stale", timeout_seconds=20),
        old.store.delete(key),
        old.store.update(key, lambda entry: b"stale"),
        old.store.transact(compare=[Compare.absent(key + "2")], put={key + "2": b"stale"}),
    ):
        with pytest.raises(LeadershipLost, match="does not lead"):
            await write
    entry = await second_store.get(key)
    assert entry is not None
    assert entry.value == b"new"
    assert await second_store.get(key + "2") is None
    await new.resign()


async def test_a_leader_whose_key_is_gone_is_told(backend: StoreBackend) -> None:
    """A leader notices at once when somebody deletes its key, and its writes are refused."""
    store, operator = await backend.open(), await backend.open()
    election = Election(store, name_of(backend), ttl_seconds=TTL_SECONDS)
    leadership = await election.campaign(b"x")
    entry = await election.leader()
    assert entry is not None
    await operator.delete(entry.key)
    async with asyncio.timeout(20):
        await leadership.lost.wait()
    with pytest.raises(LeadershipLost):
        await leadership.store.put(backend.prefix + "a", b"1")
    again = await election.campaign(b"x", timeout_seconds=20)
    await again.store.put(backend.prefix + "a", b"1")
    await again.resign()


async def test_a_leaders_own_conditions_are_not_its_fence(backend: StoreBackend) -> None:
    """A condition of the leader that fails is a failed comparison, not a lost leadership."""
    store = await backend.open()
    leadership = await Election(store, name_of(backend), ttl_seconds=TTL_SECONDS).campaign(b"x")
    key = backend.prefix + "a"
    await leadership.store.put(key, b"1")
    with pytest.raises(CompareFailed):
        await leadership.store.transact(compare=[Compare.absent(key)], put={key: b"2"})
    assert not leadership.lost.is_set()
    await leadership.resign()
    assert leadership.lost.is_set()


async def test_a_campaign_ends_at_its_deadline(backend: StoreBackend) -> None:
    """A candidate that is not elected in time says so and stands no more."""
    first = Election(await backend.open(), name_of(backend), ttl_seconds=TTL_SECONDS)
    second = Election(await backend.open(), name_of(backend), ttl_seconds=TTL_SECONDS)
    leadership = await first.campaign(b"first")
    with pytest.raises(Unavailable, match="another process leads"):
        await second.campaign(b"second", timeout_seconds=0.3)
    await leadership.resign()
    assert await first.leader() is None


async def test_a_candidate_waits_through_a_silence(backend: StoreBackend) -> None:
    """A candidate that was cut off while it waited is elected after it is connected again."""
    first_store, second_store = await backend.open(), await backend.open()
    leadership = await Election(first_store, name_of(backend), ttl_seconds=TTL_SECONDS).campaign(
        b"first"
    )
    second = Election(second_store, name_of(backend), ttl_seconds=1)
    campaign = asyncio.create_task(second.campaign(b"second"))
    await asyncio.sleep(0.2)
    backend.cut_off(second_store)
    await asyncio.sleep(2.0)
    await leadership.resign()
    backend.heal(second_store)
    elected = await campaign
    leader = await Election(first_store, name_of(backend), ttl_seconds=TTL_SECONDS).leader()
    assert leader is not None
    assert leader.value == b"second"
    with contextlib.suppress(Unavailable):
        await elected.resign()
