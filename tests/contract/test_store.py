"""What every Store does; run against each implementation, the etcd one on a real server."""

import asyncio
import contextlib
import time

import pytest

from realloc.coordination.store import (
    MAX_VALUE_BYTES,
    Compare,
    CompareFailed,
    Event,
    EventKind,
    HistoryLost,
    Store,
)
from realloc.core.errors import InvalidInput, NotFound, Unavailable
from tests.contract.store_backends import StoreBackend

CLOCK_SLACK_SECONDS = 1.5
"""etcd ends leases every half second, and two busy cores add to that."""


async def take(store: Store, prefix: str, start_revision: int, count: int) -> list[Event]:
    """The next events of a watch."""
    events: list[Event] = []
    async with contextlib.aclosing(store.watch(prefix, start_revision=start_revision)) as watch:
        async for event in watch:
            events.append(event)
            if len(events) == count:
                break
    return events


async def until_gone(store: Store, key: str) -> None:
    """Wait until a key is deleted, by a watch."""
    entry = await store.get(key)
    if entry:
        await store.wait_changed(entry)
        assert await store.get(key) is None


async def test_a_key_has_the_last_value_that_was_put(backend: StoreBackend) -> None:
    """A key reads as it was last put, by any client, with the revisions of its life."""
    store, other = await backend.open(), await backend.open()
    key = backend.prefix + "a"
    assert await store.get(key) is None
    created = await store.put(key, b"\x00\xff")
    modified = await store.put(key, b"")
    entry = await other.get(key)
    assert entry is not None
    assert (entry.key, entry.value) == (key, b"")
    assert (entry.create_revision, entry.mod_revision) == (created, modified)
    assert modified > created
    await other.delete(key)
    assert await store.get(key) is None
    again = await store.put(key, b"2")
    entry = await store.get(key)
    assert entry is not None
    assert entry.create_revision == again


async def test_a_listing_is_the_prefix_at_one_revision(backend: StoreBackend) -> None:
    """A listing has the keys of its prefix only, ordered, and the store's revision."""
    store = await backend.open()
    for name in ("b/2", "a/9", "b/1", "b/10", "b", "c", "bé"):
        last = await store.put(backend.prefix + name, name.encode())
    listing = await store.list(backend.prefix + "b/")
    assert [entry.value for entry in listing] == [b"b/1", b"b/10", b"b/2"]
    assert listing.revision >= last
    everything = await store.list(backend.prefix)
    assert [entry.key for entry in everything] == sorted(entry.key for entry in everything)
    assert len(everything) == 7
    assert len(await store.list(backend.prefix + "none/")) == 0


async def test_deleting_nothing_changes_nothing(backend: StoreBackend) -> None:
    """The deletion of a key that does not exist is no error and no event."""
    store = await backend.open()
    revision = await store.put(backend.prefix + "a", b"1")
    assert await store.delete(backend.prefix + "b") >= revision
    await store.put(backend.prefix + "c", b"1")
    events = await take(store, backend.prefix, revision, 2)
    assert [event.key for event in events] == [backend.prefix + "a", backend.prefix + "c"]


async def test_a_transaction_is_all_or_nothing(backend: StoreBackend) -> None:
    """One condition that fails prevents every write, and is named."""
    store = await backend.open()
    a, b, c = (backend.prefix + name for name in "abc")
    await store.put(a, b"1")
    entry = await store.get(a)
    assert entry is not None
    held, broken = Compare.unchanged(entry), Compare(key=b, mod_revision=entry.mod_revision)
    with pytest.raises(CompareFailed, match=b) as raised:
        await store.transact(compare=[held, broken], put={a: b"2", c: b"2"}, delete=[b])
    assert raised.value.failed == (broken,)
    assert await store.get(a) == entry
    assert await store.get(c) is None


async def test_writes_of_a_transaction_share_a_revision(backend: StoreBackend) -> None:
    """Puts and deletions of a transaction happen at once, at the revision that it returns."""
    store = await backend.open()
    a, b, c = (backend.prefix + name for name in "abc")
    await store.put(a, b"1")
    revision = await store.transact(
        compare=[Compare.absent(b), Compare.absent(c)], put={b: b"2", c: b"3"}, delete=[a]
    )
    events = await take(store, backend.prefix, revision, 3)
    assert [event.revision for event in events] == [revision] * 3
    assert {(event.kind, event.key) for event in events} == {
        (EventKind.DELETE, a),
        (EventKind.PUT, b),
        (EventKind.PUT, c),
    }


@pytest.mark.parametrize("condition", ["absent", "created", "modified", "both"])
async def test_each_kind_of_condition_is_checked(backend: StoreBackend, condition: str) -> None:
    """Absence, create revision and mod revision each let a write pass or refuse it."""
    store = await backend.open()
    key, target = backend.prefix + "key", backend.prefix + "target"
    created = await store.put(key, b"1")
    modified = await store.put(key, b"2")
    passing = {
        "absent": Compare.absent(target),
        "created": Compare(key=key, create_revision=created),
        "modified": Compare(key=key, mod_revision=modified),
        "both": Compare(key=key, create_revision=created, mod_revision=modified),
    }[condition]
    refused = {
        "absent": Compare.absent(key),
        "created": Compare(key=key, create_revision=modified),
        "modified": Compare(key=key, mod_revision=created),
        "both": Compare(key=key, create_revision=created, mod_revision=created),
    }[condition]
    with pytest.raises(CompareFailed):
        await store.transact(compare=[refused], put={target: b"x"})
    await store.transact(compare=[passing], put={target: b"x"})


async def test_concurrent_updates_all_count(backend: StoreBackend) -> None:
    """Increments by compare-and-swap from several clients at once lose none."""
    stores = [await backend.open() for _ in range(3)]
    key = backend.prefix + "count"

    async def increment(store: Store) -> None:
        for _ in range(20):
            await store.update(key, lambda entry: b"%d" % (int(entry.value) + 1 if entry else 1))

    await asyncio.gather(*(increment(store) for store in stores for _ in range(2)))
    entry = await stores[0].get(key)
    assert entry is not None
    assert entry.value == b"120"


async def test_an_update_stops_at_a_condition_of_its_own(backend: StoreBackend) -> None:
    """An update whose further condition fails raises, instead of trying for ever."""
    store = await backend.open()
    with pytest.raises(CompareFailed):
        await store.update(
            backend.prefix + "a",
            lambda entry: b"x",
            compare=[Compare(key=backend.prefix + "fence", create_revision=1)],
        )
    assert await store.get(backend.prefix + "a") is None


async def test_wrong_transactions_are_refused(backend: StoreBackend) -> None:
    """Empty keys, values too large and keys written twice are all reported at once."""
    store = await backend.open()
    key = backend.prefix + "a"
    with pytest.raises(InvalidInput) as raised:
        await store.transact(put={key: bytes(MAX_VALUE_BYTES + 1), "": b""}, delete=[key])
    assert len(raised.value.problems) == 3
    with pytest.raises(InvalidInput, match="more than 128"):
        await store.transact(put={f"{key}{i}": b"" for i in range(129)})
    with pytest.raises(InvalidInput, match="ttl_seconds"):
        await store.grant(ttl_seconds=0)
    await store.put(key, bytes(MAX_VALUE_BYTES))


async def test_a_watch_yields_the_past_and_the_present_in_order(backend: StoreBackend) -> None:
    """A watch begins at its revision, yields its prefix only, and goes on with what comes."""
    store, writer = await backend.open(), await backend.open()
    keys = [f"{backend.prefix}in/{i}" for i in range(4)]
    await writer.put(keys[0], b"before")
    start = await writer.put(keys[1], b"past")
    await writer.put(backend.prefix + "out", b"")
    await writer.delete(keys[0])
    watching = asyncio.create_task(take(store, backend.prefix + "in/", start, 6))
    for key in keys:
        await writer.put(key, b"new")
    events = await watching
    assert [event.key for event in events] == [keys[1], keys[0], *keys]
    assert events[1].kind is EventKind.DELETE
    assert events[1].entry is None
    revisions = [event.revision for event in events]
    assert revisions == sorted(set(revisions))
    assert revisions[0] == start
    assert events[-1].entry == await store.get(keys[-1])


async def test_a_listing_continues_as_a_watch(backend: StoreBackend) -> None:
    """Listing, then watching from the next revision, sees each write exactly once."""
    store, writer = await backend.open(), await backend.open()

    async def write() -> None:
        for i in range(100):
            await writer.put(f"{backend.prefix}{i:03}", b"")

    writing = asyncio.create_task(write())
    while len(listing := await store.list(backend.prefix)) < 10:
        await asyncio.sleep(0)
    events = await take(store, backend.prefix, listing.revision + 1, 100 - len(listing))
    await writing
    seen = [entry.key for entry in listing] + [event.key for event in events]
    assert seen == [f"{backend.prefix}{i:03}" for i in range(100)]


async def test_a_watch_that_catches_up_misses_nothing(backend: StoreBackend) -> None:
    """Thousands of past events arrive completely and in order, also across a silent time."""
    store, writer = await backend.open(), await backend.open()
    start = await writer.put(backend.prefix + "start", b"")
    for i in range(20):
        await writer.transact(put={f"{backend.prefix}{i:02}/{j:03}": b"" for j in range(100)})
    events = await take(store, backend.prefix, start + 1, 1000)
    backend.cut_off(store)
    rest = asyncio.create_task(take(store, backend.prefix, events[-1].revision + 1, 1000))
    await asyncio.sleep(0.1)
    backend.heal(store)
    events += await rest
    expected = {f"{backend.prefix}{i:02}/{j:03}" for i in range(20) for j in range(100)}
    assert {event.key for event in events} == expected
    revisions = [event.revision for event in events]
    assert revisions == sorted(revisions)


async def test_a_watch_of_compacted_events_says_so(backend: StoreBackend) -> None:
    """A watch from a compacted revision raises; one from the compaction on works."""
    store = await backend.open()
    first = await store.put(backend.prefix + "a", b"1")
    second = await store.put(backend.prefix + "a", b"2")
    await backend.compact(second)
    with pytest.raises(HistoryLost, match="compacted"):
        await take(store, backend.prefix, first, 1)
    assert [event.revision for event in await take(store, backend.prefix, second, 1)] == [second]


async def test_a_watch_from_the_future_says_so(backend: StoreBackend) -> None:
    """A revision that the store has not reached was read from another store."""
    store = await backend.open()
    revision = await store.put(backend.prefix + "a", b"1")
    with pytest.raises(HistoryLost, match="list again"):
        await take(store, backend.prefix, revision + 1000, 1)


async def test_waiting_for_a_change_sees_puts_and_deletions(backend: StoreBackend) -> None:
    """`wait_changed` returns for a change of its key, past or to come, not for its neighbours."""
    store = await backend.open()
    key = backend.prefix + "a"
    await store.put(key, b"1")
    entry = await store.get(key)
    assert entry is not None
    waiting = asyncio.create_task(store.wait_changed(entry))
    await store.put(key + "b", b"neighbour")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(waiting)
    await store.put(key, b"1")
    await waiting
    await store.wait_changed(entry)
    entry = await store.get(key)
    assert entry is not None
    await backend.compact(await store.put(key + "b", b""))
    waiting = asyncio.create_task(store.wait_changed(entry))
    await store.delete(key)
    await waiting


async def test_a_kept_lease_outlives_its_ttl(backend: StoreBackend) -> None:
    """A lease is renewed in the background; revoking it deletes its keys at once."""
    store = await backend.open()
    lease = await store.grant(ttl_seconds=2)
    key = backend.prefix + "a"
    await store.put(key, b"1", lease=lease)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(lease.ttl_seconds + CLOCK_SLACK_SECONDS):
            await lease.lost.wait()
    entry = await store.get(key)
    assert entry is not None
    assert entry.lease_id == lease.id
    await lease.revoke()
    assert lease.lost.is_set()
    assert await store.get(key) is None
    await lease.revoke()


async def test_a_lost_lease_is_noticed_before_the_ttl_is_over(backend: StoreBackend) -> None:
    """A client that is cut off knows before the server ends its lease and deletes the keys."""
    store, other = await backend.open(), await backend.open()
    granted = time.monotonic()
    lease = await store.grant(ttl_seconds=2)
    key = backend.prefix + "a"
    await store.put(key, b"1", lease=lease)
    gone = asyncio.create_task(until_gone(other, key))
    await asyncio.sleep(0.1)
    backend.cut_off(store)
    await lease.lost.wait()
    assert not gone.done()
    await gone
    assert time.monotonic() - granted >= lease.ttl_seconds


async def test_a_short_silence_does_not_lose_a_lease(backend: StoreBackend) -> None:
    """A lease survives a cut that is shorter than its TTL."""
    store = await backend.open()
    lease = await store.grant(ttl_seconds=4)
    backend.cut_off(store)
    await asyncio.sleep(1.0)
    backend.heal(store)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(lease.ttl_seconds + CLOCK_SLACK_SECONDS):
            await lease.lost.wait()


async def test_a_put_with_a_lease_that_is_over_is_refused(backend: StoreBackend) -> None:
    """Nothing is written with a lease that has ended."""
    store = await backend.open()
    lease = await store.grant(ttl_seconds=1)
    await lease.revoke()
    with pytest.raises(NotFound, match="lease"):
        await store.put(backend.prefix + "a", b"1", lease=lease)
    assert await store.get(backend.prefix + "a") is None


async def test_the_last_put_decides_the_lease(backend: StoreBackend) -> None:
    """A key put again with another lease, or none, does not end with its first one."""
    store = await backend.open()
    first, second = await store.grant(ttl_seconds=60), await store.grant(ttl_seconds=60)
    a, b = backend.prefix + "a", backend.prefix + "b"
    await store.transact(put={a: b"1", b: b"1"}, lease=first)
    await store.put(a, b"2", lease=second)
    await store.put(b, b"2")
    await first.revoke()
    assert len(await store.list(backend.prefix)) == 2
    await second.revoke()
    assert [entry.key for entry in await store.list(backend.prefix)] == [b]


async def test_the_end_of_a_lease_is_one_event_per_key(backend: StoreBackend) -> None:
    """A watch sees the keys of a lost lease deleted, at one revision."""
    store, other = await backend.open(), await backend.open()
    lease = await store.grant(ttl_seconds=1)
    names = [backend.prefix + name for name in "ab"]
    revision = await store.transact(put=dict.fromkeys(names, b"1"), lease=lease)
    backend.cut_off(store)
    events = await take(other, backend.prefix, revision + 1, 2)
    assert sorted(event.key for event in events) == names
    assert {event.kind for event in events} == {EventKind.DELETE}
    assert len({event.revision for event in events}) == 1


async def test_a_call_ends_at_its_deadline(backend: StoreBackend) -> None:
    """A store that does not answer gives Unavailable in time, and works again afterwards."""
    store = await backend.open(timeout_seconds=0.4)
    key = backend.prefix + "a"
    await store.put(key, b"1", timeout_seconds=20)
    backend.cut_off(store)
    with pytest.raises(Unavailable, match=r"within 0\.3 s"):
        await store.put(key, b"2", timeout_seconds=0.3)
    with pytest.raises(Unavailable, match=r"within 0\.4 s"):
        await store.list(backend.prefix)
    backend.heal(store)
    await store.put(key, b"3", timeout_seconds=20)


async def test_a_watch_survives_a_silence(backend: StoreBackend) -> None:
    """A watch whose connection was silent yields what happened meanwhile, in order."""
    store, writer = await backend.open(), await backend.open()
    start = await writer.put(backend.prefix + "0", b"")
    watching = asyncio.create_task(take(store, backend.prefix, start, 6))
    await asyncio.sleep(0.2)
    backend.cut_off(store)
    for i in range(1, 6):
        await writer.put(f"{backend.prefix}{i}", b"")
    await asyncio.sleep(0.2)
    assert not watching.done()
    backend.heal(store)
    assert [event.key for event in await watching] == [f"{backend.prefix}{i}" for i in range(6)]


async def test_a_closed_store_refuses_and_ends_its_watches(backend: StoreBackend) -> None:
    """Closing ends watches and leases, and later calls say that the store is closed."""
    store = await backend.open()
    revision = await store.put(backend.prefix + "a", b"1")
    lease = await store.grant(ttl_seconds=60)
    watching = asyncio.create_task(take(store, backend.prefix, revision + 1, 1))
    await asyncio.sleep(0.1)
    await store.close()
    assert lease.lost.is_set()
    with pytest.raises(Unavailable, match="closed"):
        async with asyncio.timeout(20):
            await watching
    with pytest.raises(Unavailable, match="closed"):
        await store.get(backend.prefix + "a")
    await store.close()


async def test_cancelling_a_call_cancels_it(backend: StoreBackend) -> None:
    """A task that is cancelled inside a call or a watch ends as cancelled."""
    store = await backend.open()
    revision = await store.put(backend.prefix + "a", b"1")
    watching = asyncio.create_task(take(store, backend.prefix, revision + 1, 1))
    await asyncio.sleep(0.1)
    backend.cut_off(store)
    reading = asyncio.create_task(store.get(backend.prefix + "a"))
    await asyncio.sleep(0.1)
    for task in (watching, reading):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
