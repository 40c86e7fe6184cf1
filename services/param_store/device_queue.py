"""Who may move weights now: one reallocation per device at a time, in the order of arrival."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from realloc.core.errors import ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    devices: frozenset[int]
    turn: "asyncio.Future[None]"


class DeviceQueue:
    """Disjoint sets of devices are held at the same time; others wait, the first first.

    Nobody overtakes another who waits for one of the same devices.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._held: set[int] = set()
        self._waiting: list[_Waiting] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def held(self, devices: Collection[int], timeout_seconds: float) -> AsyncIterator[None]:
        """Hold devices within the context.

        Raises:
            ResourceExhausted: too many wait already.
            Unavailable: the devices did not become free in time.
        """
        wanted = frozenset(devices)
        await self._acquire(wanted, timeout_seconds)
        try:
            yield
        finally:
            self._held -= wanted
            self._admit()

    async def _acquire(self, wanted: frozenset[int], timeout_seconds: float) -> None:
        waiting = _Waiting(devices=wanted, turn=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._admit()
        if not waiting.turn.done() and len(self._waiting) > self._max_waiting:
            self._waiting.remove(waiting)
            raise ResourceExhausted(
                f"{self._max_waiting} reallocations wait for devices already; try later"
            )
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiting.turn
        except BaseException as error:
            self._leave(waiting)
            if isinstance(error, TimeoutError):
                busy = ", ".join(map(str, sorted(wanted & self._held)))
                raise Unavailable(
                    f"device {busy} was busy with other reallocations for {timeout_seconds:g} s"
                ) from None
            raise

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        else:  # its turn came together with the end of its patience
            self._held -= waiting.devices
        self._admit()

    def _admit(self) -> None:
        """Give turns to all whose devices are free, and that nobody before them waits for."""
        blocked = set(self._held)
        for waiting in list(self._waiting):
            if not blocked & waiting.devices:
                self._waiting.remove(waiting)
                self._held |= waiting.devices
                if not waiting.turn.done():
                    waiting.turn.set_result(None)
            blocked |= waiting.devices
