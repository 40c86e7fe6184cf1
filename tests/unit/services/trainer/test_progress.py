"""Progress of work in a thread, as a stream."""

import asyncio
import threading
from contextlib import aclosing

import pytest

from services.trainer.progress import ProgressFeed, Step


def test_the_first_and_the_last_step_are_told() -> None:
    """Steps in between may be left out, never the last; then the stream ends."""

    async def scenario() -> list[Step]:
        feed, seen, told = ProgressFeed(), [], threading.Event()

        def work() -> None:
            feed.report(1, 10)
            assert told.wait(10)
            for done in range(2, 11):
                feed.report(done, 10)

        async with aclosing(feed.follow(asyncio.to_thread(work))) as steps:
            async for step in steps:
                seen.append(step)
                told.set()
        return seen

    seen = asyncio.run(scenario())
    assert (seen[0], seen[-1]) == (Step(done=1, total=10), Step(done=10, total=10))
    assert [step.done for step in seen] == sorted(step.done for step in seen)


def test_an_error_of_the_work_ends_the_stream() -> None:
    """Whoever follows sees it."""

    async def scenario() -> None:
        async def work() -> None:
            raise ValueError("broken")

        async with aclosing(ProgressFeed().follow(work())) as steps:
            async for _ in steps:
                pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(scenario())
