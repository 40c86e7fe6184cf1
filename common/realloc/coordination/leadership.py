"""Being the leader: knowing when it ends, and writing only while it lasts."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping
from types import TracebackType
from typing import Self

from realloc.coordination.lease import Lease, until_lost
from realloc.coordination.store import (
    Compare,
    CompareFailed,
    Entry,
    Event,
    Listing,
    Store,
)
from realloc.core.errors import Conflict, ReallocError, Unavailable


class LeadershipLost(Conflict):
    """This process does not lead any more; it stops what only the leader may do."""


class Leadership:
    """A won election; ``async with`` resigns at its end.

    Attributes:
        lost: set, for ever, when somebody else may lead: the lease is lost or the key gone.
        guard: a condition that fails every transaction from then on.
        store: the store with every write under the guard; a leader writes only through it, so
            that one which has not yet noticed its end changes nothing.
    """

    def __init__(self, store: Store, name: str, lease: Lease, entry: Entry) -> None:
        self.lost = asyncio.Event()
        self.guard = Compare.unchanged(entry)
        self.store = FencedStore(store, self)
        self.name = name
        self._lease = lease
        self._observer = asyncio.create_task(self._observe(store, entry), name=f"leader of {name}")

    async def resign(self) -> None:
        """Let the next candidate lead at once.

        Raises:
            Unavailable: the store was not reached; the next one leads after the TTL.
        """
        self._observer.cancel()
        await asyncio.wait([self._observer])
        await self._lease.revoke()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ReallocError):
            await self.resign()

    async def _observe(self, store: Store, entry: Entry) -> None:
        try:
            await until_lost(self._lease, store.wait_changed(entry))
        except Unavailable:
            pass  # the key cannot be watched any more: safer to stop
        finally:
            self.lost.set()


class FencedStore(Store):
    """A store whose writes are refused unless this process still leads.

    Every write raises `LeadershipLost` otherwise. Reads and watches are those of the store.
    Closing it does nothing: the store belongs to somebody else.
    """

    def __init__(self, store: Store, leadership: Leadership) -> None:
        self._store = store
        self._leadership = leadership

    @property
    def timeout_seconds(self) -> float:
        return self._store.timeout_seconds

    async def get(self, key: str, *, timeout_seconds: float | None = None) -> Entry | None:
        return await self._store.get(key, timeout_seconds=timeout_seconds)

    async def list(self, prefix: str, *, timeout_seconds: float | None = None) -> Listing:
        return await self._store.list(prefix, timeout_seconds=timeout_seconds)

    async def transact(
        self,
        *,
        compare: Collection[Compare] = (),
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
        lease: Lease | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        guard = self._leadership.guard
        try:
            return await self._store.transact(
                compare=[guard, *compare],
                put=put,
                delete=delete,
                lease=lease,
                timeout_seconds=timeout_seconds,
            )
        except CompareFailed as error:
            if guard not in error.failed:
                raise
            self._leadership.lost.set()
            raise LeadershipLost(
                f"this process does not lead {self._leadership.name} any more; nothing was written"
            ) from None

    async def grant(self, *, ttl_seconds: int, timeout_seconds: float | None = None) -> Lease:
        return await self._store.grant(ttl_seconds=ttl_seconds, timeout_seconds=timeout_seconds)

    def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[Event, None]:
        return self._store.watch(prefix, start_revision=start_revision)

    async def close(self) -> None:
        pass
