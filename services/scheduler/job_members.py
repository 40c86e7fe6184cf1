"""Finds the processes that a job needs, and waits for those that are still starting."""

import asyncio
from collections.abc import Callable, Collection
from typing import TypeVar

from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import NotFound, Unavailable

Found = TypeVar("Found")


class JobMembers:
    """The registered processes, but for those that are known to be gone: their lease may
    outlive them by some seconds."""

    def __init__(
        self, members: Members, *, timeout_seconds: float, gone: Collection[Member] = ()
    ) -> None:
        """
        Args:
            timeout_seconds: longest wait of each call.
        """
        self._members = members
        self._timeout = timeout_seconds
        self._gone = gone

    async def one(self, kind: str) -> Member:
        """A process of a kind.

        Raises:
            Unavailable: none is there in time.
        """
        found = await self._wait(lambda: next(iter(self._present(kind)), None))
        if found is None:
            raise Unavailable(f"no {kind} is registered")
        return found

    async def on_devices(self, kind: str, devices: Collection[int]) -> dict[int, Member]:
        """The process of a kind on each device, in their order.

        Raises:
            NotFound: a device has none in time.
        """

        def all_of_them() -> dict[int, Member] | None:
            present = {each.device: each for each in self._present(kind)}
            if all(device in present for device in devices):
                return {device: present[device] for device in devices}
            return None

        found = await self._wait(all_of_them)
        if found is None:
            missing = sorted(set(devices) - {each.device for each in self._present(kind)})
            raise NotFound(
                f"no {kind} shard is registered for device {', '.join(map(str, missing))}"
            )
        return found

    async def _wait(self, look: Callable[[], Found | None]) -> Found | None:
        """What `look` finds at once or after a member came; None where time is up."""
        try:
            async with asyncio.timeout(self._timeout):
                async for _ in self._members.changes():
                    if (found := look()) is not None:
                        return found
        except TimeoutError:
            pass
        return look()

    def _present(self, kind: str) -> list[Member]:
        return [each for each in self._members.current(kind) if each not in self._gone]
