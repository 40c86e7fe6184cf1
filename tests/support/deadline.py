"""Coroutines of tests run on a loop of their own, and end in time."""

import asyncio
from collections.abc import Awaitable, Callable

TEST_SECONDS = 240.0
"""Far from what any of them needs, also on a busy machine."""


def within(work: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine under the deadline."""

    async def limited() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await work()

    asyncio.run(limited())
