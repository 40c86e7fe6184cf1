"""How far blocking work is, from its thread to a stream of messages."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Takes how much is done, and of how much; called often, from the thread that works."""
_PERIOD_SECONDS = 1.0


def ignore_progress(done: int, total: int) -> None:
    """Nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How much is done, and of how much."""

    done: int
    total: int


class ProgressFeed:
    """Carries the latest step; steps in between are left out. Made in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._latest = Step(done=0, total=0)
        self._sent = 0.0

    def report(self, done: int, total: int) -> None:
        """A step; called by the thread that works."""
        self._latest = Step(done=done, total=total)
        if time.monotonic() - self._sent > _PERIOD_SECONDS:
            self._sent = time.monotonic()
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def follow(self, work: Awaitable[object]) -> AsyncGenerator[Step, None]:
        """Steps until the work has ended, the last one included; raises what the work raises."""
        running = asyncio.ensure_future(work)
        running.add_done_callback(lambda _: self._arrived.set())
        try:
            while not running.done():
                await self._arrived.wait()
                self._arrived.clear()
                if not running.done():
                    yield self._latest
            await running
            yield self._latest
        finally:
            running.cancel()
