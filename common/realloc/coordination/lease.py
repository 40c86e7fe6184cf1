"""A lease kept alive in the background, which says before its end that it is lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from realloc.core.errors import ReallocError

RENEWALS_PER_TTL = 4
"""Renewals that are tried within one TTL; several may fail before the lease is lost."""

USABLE_FRACTION = 0.8
"""Part of the TTL, counted from when the last good renewal was sent, after which the lease is
reported lost. The server counts the whole TTL from when it received it, so the holder always
knows first, with a fifth of the TTL left to stop working."""

RETRY_SECONDS = 0.05
"""Pause after a renewal that failed."""

Renew = Callable[[int, float], Awaitable[float]]
"""(lease id, timeout in seconds) → seconds to live that the server answered; ≤ 0: it is over.
Raises a `ReallocError` where the server was not reached within the timeout."""

Revoke = Callable[[int], Awaitable[None]]
"""(lease id) → None; ends the lease on the server."""


class Lease:
    """A promise of the server to keep some keys while their owner is alive.

    Attributes:
        id: the server's number of the lease.
        ttl_seconds: seconds after which the server ends it when it hears nothing.
        lost: set, for ever, when the lease may be over: not renewed in time, ended by the
            server, or revoked.
    """

    def __init__(
        self, lease_id: int, ttl_seconds: float, *, granted: float, renew: Renew, revoke: Revoke
    ) -> None:
        """``granted``: the loop's time when the grant was *sent*."""
        self.id = lease_id
        self.ttl_seconds = ttl_seconds
        self.lost = asyncio.Event()
        self._renew = renew
        self._revoke = revoke
        self._renewed_at = granted
        self._keeper = asyncio.create_task(self._keep(), name=f"lease {lease_id:x}")

    async def revoke(self) -> None:
        """End the lease now; its keys are deleted at once. Again: nothing more happens.

        Raises:
            Unavailable: the server was not reached; the lease ends with its TTL.
        """
        if await self.abandon():
            await self._revoke(self.id)

    async def abandon(self) -> bool:
        """Stop renewing without telling the server; False where it was lost already."""
        held = not self.lost.is_set()
        self.lost.set()
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        return held

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ReallocError):
            await self.revoke()

    async def _keep(self) -> None:
        try:
            alive = True
            while alive:
                await self._pause()
                alive = await self._renewed()
        finally:
            self.lost.set()

    def _usable_until(self) -> float:
        return self._renewed_at + self.ttl_seconds * USABLE_FRACTION

    async def _pause(self) -> None:
        """Until the next renewal is due; not at all where the last one took long."""
        due = self._renewed_at + self.ttl_seconds / RENEWALS_PER_TTL
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))

    async def _renewed(self) -> bool:
        """Try until a renewal is answered; False when the lease is, or may be, over."""
        loop = asyncio.get_running_loop()
        while (sent := loop.time()) < self._usable_until():
            # Shorter than what is left: another connection may answer where this one hangs.
            timeout = min(self._usable_until() - sent, self.ttl_seconds / RENEWALS_PER_TTL)
            try:
                ttl_seconds = await self._renew(self.id, timeout)
            except ReallocError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._renewed_at = sent
            return ttl_seconds > 0
        return False


async def until_lost(lease: Lease, work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work`` while the lease is held; True where it ended, False where it was cut off."""
    working = asyncio.create_task(work)
    losing = asyncio.create_task(lease.lost.wait())
    try:
        await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        working.cancel()
        losing.cancel()
        await asyncio.wait({working, losing})
