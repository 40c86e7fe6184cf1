"""Gangs of devices: a job gets all of its devices or none, first come first served."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager


class Devices:
    """Which devices are taken. A waiting gang holds back later ones that want a device of it,
    and no others."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._waiting: list[frozenset[int]] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reserved(self, devices: Collection[int]) -> AsyncIterator[None]:
        """Hold a gang; waits, without deadline, until every device of it is free."""
        gang = frozenset(devices)
        self._waiting.append(gang)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_next(gang))
                self._taken |= gang
        finally:
            self._remove(gang)
            async with self._changed:
                self._changed.notify_all()
        try:
            yield
        finally:
            self._taken -= gang
            async with self._changed:
                self._changed.notify_all()

    def _is_next(self, gang: frozenset[int]) -> bool:
        for earlier in self._waiting:
            if earlier is gang:
                return not gang & self._taken
            if earlier & gang:
                return False
        raise AssertionError("a gang that waits is in the queue")

    def _remove(self, gang: frozenset[int]) -> None:
        self._waiting = [other for other in self._waiting if other is not gang]
