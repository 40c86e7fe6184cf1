"""Finds the processes that a job needs, and waits for those that are still starting."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing

from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import NotFound, Unavailable


class JobMembers:
    """The registered processes, but for those that are gone: their leases may outlive them by
    some seconds. So each is asked for a sign of life, and waited for where it gives none."""

    def __init__(
        self,
        members: Members,
        is_alive: Callable[[Member], Awaitable[bool]],
        *,
        timeout_seconds: float,
        gone: Collection[Member] = (),
    ) -> None:
        """
        Args:
            is_alive: asks a process.
            timeout_seconds: longest wait of each call.
            gone: processes that are known to be gone, or of no use any more.
        """
        self._members = members
        self._is_alive = is_alive
        self._timeout = timeout_seconds
        self._gone = set(gone)

    async def one(self, kind: str) -> Member:
        """A process of a kind.

        Raises:
            Unavailable: none is there in time.
        """
        found = await self._living(lambda: self._present(kind)[:1] or None)
        if found is None:
            raise Unavailable(f"no {kind} is registered, or none that answers")
        return found[0]

    async def on_devices(self, kind: str, devices: Collection[int]) -> dict[int, Member]:
        """The process of a kind on each device, in their order.

        Raises:
            NotFound: a device has none in time.
        """

        def all_of_them() -> list[Member] | None:
            present = {each.device: each for each in self._present(kind)}
            if all(device in present for device in devices):
                return [present[device] for device in devices]
            return None

        found = await self._living(all_of_them)
        if found is None:
            missing = sorted(set(devices) - {each.device for each in self._present(kind)})
            raise NotFound(
                f"no {kind} shard is registered for device {', '.join(map(str, missing))}, "
                "or none that answers"
            )
        return dict(zip(devices, found, strict=True))

    async def _living(self, look: Callable[[], Sequence[Member] | None]) -> Sequence[Member] | None:
        """What `look` finds once all of it is alive; None where time is up."""
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    found = await self._registered(look)
                    alive = await asyncio.gather(*map(self._is_alive, found))
                    if all(alive):
                        return found
                    self._gone |= {one for one, is_ in zip(found, alive, strict=True) if not is_}
        except TimeoutError:
            return None

    async def _registered(self, look: Callable[[], Sequence[Member] | None]) -> Sequence[Member]:
        """What `look` finds at once or after a member came."""
        async with aclosing(self._members.changes()) as changes:
            while (found := look()) is None:
                await anext(changes)
        return found

    def _present(self, kind: str) -> list[Member]:
        return [each for each in self._members.current(kind) if each not in self._gone]
