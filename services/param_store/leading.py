"""Several param-stores, one leader: only it moves weights, the others pass requests on."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from realloc.coordination.election import Election
from realloc.coordination.leadership import Leadership
from realloc.coordination.store import Store
from realloc.core.errors import ReallocError, Unavailable
from services.param_store.reallocator import Reallocator

log = structlog.get_logger(__name__)

ELECTION = "param_store"
LEADER_TTL_SECONDS = 3
"""A leader that fell silent for so long is replaced; a reallocation waits meanwhile."""
_PAUSE_SECONDS = 0.1


class Leading:
    """Stands for election while it runs, and has a reallocator while it leads."""

    def __init__(
        self,
        store: Store,
        make_reallocator: Callable[[Store], Reallocator],
        *,
        ttl_seconds: int = LEADER_TTL_SECONDS,
    ) -> None:
        """
        Args:
            make_reallocator: given a store that refuses writes once another leads.
        """
        self._election = Election(store, ELECTION, ttl_seconds=ttl_seconds)
        self._make_reallocator = make_reallocator
        self._reallocator: Reallocator | None = None
        self._address = b""

    async def run(self, address: str) -> None:
        """Lead whenever elected, until cancelled.

        Args:
            address: where the others reach this process.
        """
        self._address = address.encode()
        while True:
            leadership = await self._election.campaign(self._address)
            log.info("leading")
            with contextlib.suppress(ReallocError):
                async with leadership:
                    await self._lead(leadership)

    async def find(self, timeout_seconds: float) -> Reallocator | str:
        """This process's reallocator, or the address of the param-store that leads.

        Raises:
            Unavailable: nobody leads for that long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._reallocator is None:
                    leader = await self._election.leader()
                    if leader is not None and leader.value != self._address:
                        return leader.value.decode()
                    await asyncio.sleep(_PAUSE_SECONDS)
                return self._reallocator
        raise Unavailable(f"no param-store led within {timeout_seconds:g} s")

    async def _lead(self, leadership: Leadership) -> None:
        reallocator = self._make_reallocator(leadership.store)
        try:
            await reallocator.recover()
            self._reallocator = reallocator
            await leadership.lost.wait()
            log.warning("leadership lost")
        finally:
            self._reallocator = None
            await reallocator.close()
