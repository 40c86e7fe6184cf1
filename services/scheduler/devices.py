"""Gangs of devices: a job gets all of its devices or none, first come first served."""

import asyncio
from collections.abc import Collection


class Devices:
    """Which devices are taken. A waiting gang holds back later ones that want a device of it,
    and no others."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._queue: list[Reservation] = []
        self._changed = asyncio.Condition()

    def reserve(self, devices: Collection[int]) -> "Reservation":
        """A place in the queue, from now on; ``async with`` waits, holds and gives back."""
        reservation = Reservation(self, frozenset(devices))
        self._queue.append(reservation)
        return reservation

    async def take(self, reservation: "Reservation") -> None:
        """Wait, without deadline, until every device of a gang is free, and take them."""
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_next(reservation))
                self._taken |= reservation.devices
        finally:
            self._queue.remove(reservation)
            await self._notify()

    async def give_back(self, reservation: "Reservation") -> None:
        """Free the devices of a gang."""
        self._taken -= reservation.devices
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _is_next(self, reservation: "Reservation") -> bool:
        for earlier in self._queue:
            if earlier is reservation:
                return not reservation.devices & self._taken
            if earlier.devices & reservation.devices:
                return False
        raise AssertionError("a gang that waits is in the queue")


class Reservation:
    """A gang's place in the queue; entered once."""

    def __init__(self, owner: Devices, devices: frozenset[int]) -> None:
        self._owner = owner
        self.devices = devices

    async def __aenter__(self) -> None:
        await self._owner.take(self)

    async def __aexit__(self, *_: object) -> None:
        await self._owner.give_back(self)
