"""A Store in the memory of one process: for tests, and for a cluster in one process."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping

from realloc.coordination.lease import Lease
from realloc.coordination.memory_database import MemoryDatabase
from realloc.coordination.store import (
    Compare,
    Entry,
    Event,
    Listing,
    Store,
    Unanswered,
    check_transaction,
    check_ttl,
)
from realloc.core.errors import Unavailable


class MemoryStore(Store):
    """One client of a `MemoryDatabase`.

    `disconnect` and `reconnect` play the network's part: while disconnected, calls end in
    `Unavailable` at their deadline, leases are not renewed, and watches wait.
    """

    def __init__(
        self, database: MemoryDatabase | None = None, *, timeout_seconds: float = 5.0
    ) -> None:
        """
        Args:
            database: shared by the stores that see the same keys; a new one if None.
            timeout_seconds: deadline of every call that gives none.
        """
        self.database = database or MemoryDatabase()
        self._timeout_seconds = timeout_seconds
        self._leases: set[Lease] = set()
        self._connected = asyncio.Event()
        self._connected.set()
        self._closed = False

    def disconnect(self) -> None:
        """Cut this client off from its database."""
        self._connected.clear()

    def reconnect(self) -> None:
        """Undo `disconnect`."""
        self._connected.set()

    @property
    def timeout_seconds(self) -> float:
        return self._timeout_seconds

    async def get(self, key: str, *, timeout_seconds: float | None = None) -> Entry | None:
        await self._reach(timeout_seconds)
        return self.database.get(key)

    async def list(self, prefix: str, *, timeout_seconds: float | None = None) -> Listing:
        await self._reach(timeout_seconds)
        return self.database.list(prefix)

    async def transact(
        self,
        *,
        compare: Collection[Compare] = (),
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
        lease: Lease | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        check_transaction(compare, put or {}, delete)
        await self._reach(timeout_seconds)
        return self.database.transact(compare, put or {}, delete, lease.id if lease else 0)

    async def grant(self, *, ttl_seconds: int, timeout_seconds: float | None = None) -> Lease:
        check_ttl(ttl_seconds)
        granted = asyncio.get_running_loop().time()
        await self._reach(timeout_seconds)
        lease = Lease(
            self.database.grant(ttl_seconds),
            ttl_seconds,
            granted=granted,
            renew=self._renew,
            revoke=self._revoke,
        )
        self._leases = {held for held in self._leases if not held.lost.is_set()} | {lease}
        return lease

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[Event, None]:
        next_revision = start_revision
        while True:
            await self._connected.wait()
            self._check_open()
            events = self.database.events(prefix, next_revision)
            next_revision = self.database.revision + 1
            for event in events:
                yield event
            if next_revision > self.database.revision:
                await self.database.next_change()

    async def close(self) -> None:
        self._closed = True
        self.reconnect()
        self.database.wake()
        for lease in self._leases:
            await lease.abandon()

    async def _reach(self, timeout_seconds: float | None) -> None:
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        self._check_open()
        await asyncio.sleep(0)  # other tasks run between two calls, as they do with a network
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            raise Unanswered(
                f"the in-memory store did not answer within {seconds:g} s; it is disconnected"
            ) from None
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed; open a new one")

    async def _renew(self, lease_id: int, timeout_seconds: float) -> float:
        await self._reach(timeout_seconds)
        return self.database.renew(lease_id)

    async def _revoke(self, lease_id: int) -> None:
        await self._reach(None)
        self.database.revoke(lease_id)
