"""What the in-memory stores of one process share: entries, history, leases that expire."""

import asyncio
import bisect
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from realloc.coordination.store import (
    Compare,
    CompareFailed,
    Entry,
    Event,
    EventKind,
    HistoryLost,
    Listing,
)
from realloc.core.errors import NotFound


@dataclass(slots=True, kw_only=True)
class _ServerLease:
    ttl_seconds: int
    expiry: asyncio.TimerHandle
    keys: set[str] = field(default_factory=set)


class MemoryDatabase:
    """The server's half of `MemoryStore`; lives on one event loop.

    The history is bounded: the oldest events are compacted away, as etcd's operators configure
    it, and a watch that wanted them raises `HistoryLost`.
    """

    def __init__(self, *, history_events: int = 10_000) -> None:
        self.revision = 1
        self._entries: dict[str, Entry] = {}
        self._history: list[Event] = []
        self._history_events = history_events
        self._compacted = 0
        self._leases: dict[int, _ServerLease] = {}
        self._lease_ids = itertools.count(1)
        self._changed = asyncio.Event()

    def get(self, key: str) -> Entry | None:
        """The present entry of a key."""
        return self._entries.get(key)

    def list(self, prefix: str) -> Listing:
        """The present entries under a prefix."""
        keys = sorted(key for key in self._entries if key.startswith(prefix))
        return Listing(entries=tuple(self._entries[key] for key in keys), revision=self.revision)

    def transact(
        self,
        compare: Collection[Compare],
        put: Mapping[str, bytes],
        delete: Collection[str],
        lease_id: int,
    ) -> int:
        """See `Store.transact`."""
        failed = [each for each in compare if not each.holds(self._entries.get(each.key))]
        if failed:
            raise CompareFailed(failed)
        if put and lease_id and lease_id not in self._leases:
            raise lease_is_over(lease_id)
        present = [key for key in delete if key in self._entries]
        if put or present:
            self._commit(put, present, lease_id)
        return self.revision

    def grant(self, ttl_seconds: int) -> int:
        """A new lease's number; it expires unless `renew` is called in time."""
        lease_id = next(self._lease_ids)
        self._leases[lease_id] = _ServerLease(
            ttl_seconds=ttl_seconds, expiry=self._expire_after(lease_id, ttl_seconds)
        )
        return lease_id

    def renew(self, lease_id: int) -> float:
        """Start the lease's TTL again; its seconds to live, 0 where it is over."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0.0
        lease.expiry.cancel()
        lease.expiry = self._expire_after(lease_id, lease.ttl_seconds)
        return float(lease.ttl_seconds)

    def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys at one revision."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        lease.expiry.cancel()
        if lease.keys:
            self._commit({}, sorted(lease.keys), 0)

    def compact(self, revision: int) -> None:
        """Forget the events before ``revision``; watches from it on still work."""
        self._compacted = max(self._compacted, revision)
        self._history = [event for event in self._history if event.revision >= revision]

    def events(self, prefix: str, start_revision: int) -> tuple[Event, ...]:
        """The events of a prefix from a revision on, so far.

        Raises:
            HistoryLost: some of them are compacted, or the revision lies in the future.
        """
        self._check_history(start_revision)
        first = bisect.bisect_left(self._history, start_revision, key=lambda event: event.revision)
        found = itertools.islice(self._history, first, None)
        return tuple(event for event in found if event.key.startswith(prefix))

    async def next_change(self) -> None:
        """Return after the next change, or `wake`."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _check_history(self, start_revision: int) -> None:
        if start_revision < self._compacted:
            raise HistoryLost(
                f"events from revision {start_revision} on are wanted, those before "
                f"{self._compacted} are compacted; list again and watch from there"
            )
        if start_revision > self.revision + 1:
            raise HistoryLost(
                f"events from revision {start_revision} on are wanted, the store is at "
                f"{self.revision}: it is another store; list again and watch from there"
            )

    def _commit(self, put: Mapping[str, bytes], delete: Collection[str], lease_id: int) -> None:
        self.revision += 1
        for key in delete:
            self._detach(self._entries.pop(key))
            self._history.append(
                Event(kind=EventKind.DELETE, key=key, revision=self.revision, entry=None)
            )
        for key, value in put.items():
            self._put(key, value, lease_id)
        if len(self._history) > self._history_events:
            self.compact(self._history[-self._history_events].revision)
        self.wake()

    def _put(self, key: str, value: bytes, lease_id: int) -> None:
        old = self._entries.get(key)
        if old:
            self._detach(old)
        entry = Entry(
            key=key,
            value=value,
            create_revision=old.create_revision if old else self.revision,
            mod_revision=self.revision,
            lease_id=lease_id,
        )
        self._entries[key] = entry
        if lease_id:
            self._leases[lease_id].keys.add(key)
        self._history.append(
            Event(kind=EventKind.PUT, key=key, revision=self.revision, entry=entry)
        )

    def _detach(self, entry: Entry) -> None:
        lease = self._leases.get(entry.lease_id)
        if lease:
            lease.keys.discard(entry.key)

    def _expire_after(self, lease_id: int, ttl_seconds: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_seconds, self.revoke, lease_id)


def lease_is_over(lease_id: int) -> NotFound:
    """The error of a put with a lease that the server does not know."""
    return NotFound(f"lease {lease_id:x} is over, nothing was written; grant a new lease")
