"""One leader among several processes.

Every candidate puts a key under the election's prefix, with a lease of its own. The candidate
with the lowest create revision leads; each of the others waits for the deletion of the key just
before its own, so that a change of leader wakes one candidate.
"""

import asyncio
import contextlib

from realloc.coordination.leadership import Leadership
from realloc.coordination.lease import Lease, until_lost
from realloc.coordination.store import Compare, Entry, Store
from realloc.core.errors import NotFound, ReallocError, Unavailable

PAUSE_SECONDS = 0.1
"""Pause before a candidate stands again, after the store could not be reached."""


class Election:
    """An election, by its name; `campaign` may be called again after a leadership was lost."""

    def __init__(self, store: Store, name: str, *, ttl_seconds: int = 5) -> None:
        """
        Args:
            name: what is led, such as ``scheduler``.
            ttl_seconds: a leader that fell silent for so long is replaced.
        """
        self._store = store
        self._name = name
        self._prefix = f"/realloc/elections/{name}/"
        self._ttl_seconds = ttl_seconds

    async def leader(self) -> Entry | None:
        """The leader's key, with what it gave to `campaign`; None while nobody leads."""
        candidates = await self._store.list(self._prefix)
        return min(candidates, key=lambda entry: entry.create_revision, default=None)

    async def campaign(self, value: bytes, *, timeout_seconds: float | None = None) -> Leadership:
        """Stand as a candidate until elected.

        Args:
            value: what others read from `leader`, such as this process's address.
            timeout_seconds: longest wait; None waits as long as others lead, and through times
                when the store is out of reach.

        Raises:
            Unavailable: not elected in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    with contextlib.suppress(Unavailable, NotFound):
                        return await self._stand(value)
                    await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"not elected as {self._name} within {timeout_seconds} s; another process leads, "
                "or the store cannot be reached"
            ) from None

    async def _stand(self, value: bytes) -> Leadership:
        lease = await self._store.grant(ttl_seconds=self._ttl_seconds)
        try:
            entry = await self._enter(lease, value)
            if not await until_lost(lease, self._wait_for_turn(entry)):
                raise Unavailable("the lease of the candidate was lost; stand again")
        except BaseException:
            with contextlib.suppress(ReallocError):
                await lease.revoke()
            raise
        return Leadership(self._store, self._name, lease, entry)

    async def _enter(self, lease: Lease, value: bytes) -> Entry:
        """Put this candidate's key, which nobody else ever writes."""
        key = f"{self._prefix}{lease.id:x}"
        revision = await self._store.transact(
            compare=[Compare.absent(key)], put={key: value}, lease=lease
        )
        return Entry(
            key=key,
            value=value,
            create_revision=revision,
            mod_revision=revision,
            lease_id=lease.id,
        )

    async def _wait_for_turn(self, mine: Entry) -> None:
        while True:
            candidates = await self._store.list(self._prefix)
            if mine.create_revision not in {each.create_revision for each in candidates}:
                raise Unavailable(f"{mine.key} was deleted while it stood for election")
            earlier = [e for e in candidates if e.create_revision < mine.create_revision]
            if not earlier:
                return
            await self._store.wait_changed(max(earlier, key=lambda e: e.create_revision))
