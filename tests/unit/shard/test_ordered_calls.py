"""The order in which a shard works."""

import asyncio
import threading

import pytest

from realloc.core.errors import Conflict, Unavailable
from realloc.shard.ordered_calls import OrderedCalls


def test_calls_run_in_the_order_of_their_numbers_whatever_the_order_of_arrival() -> None:
    """Numbers decide, not arrival."""

    async def scenario() -> list[int]:
        calls, seen = OrderedCalls("test"), []
        await asyncio.gather(
            *(calls.run(lambda n=n: seen.append(n), sequence=n, timeout=5) for n in (3, 1, 4, 2))
        )
        calls.close()
        return seen

    assert asyncio.run(scenario()) == [1, 2, 3, 4]


def test_a_failed_call_passes_its_turn() -> None:
    """The call after one that raised still runs."""

    def fail() -> None:
        raise ValueError("broken")

    async def scenario() -> str:
        calls = OrderedCalls("test")
        later = asyncio.ensure_future(calls.run(lambda: "ran", sequence=2, timeout=5))
        with pytest.raises(ValueError, match="broken"):
            await calls.run(fail, sequence=1, timeout=5)
        return await later

    assert asyncio.run(scenario()) == "ran"


def test_a_turn_that_never_comes_ends_at_the_deadline() -> None:
    """The error names the call that is missing."""

    async def scenario() -> None:
        await OrderedCalls("test").run(lambda: None, sequence=2, timeout=0.05)

    with pytest.raises(Unavailable, match="for call 1 before it"):
        asyncio.run(scenario())


def test_a_cancelled_caller_does_not_stop_running_work() -> None:
    """Work that has begun ends, and only then the next call runs."""

    async def scenario() -> list[str]:
        calls, seen = OrderedCalls("test"), []
        began, release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            loop.call_soon_threadsafe(began.set)
            release.wait(5)
            seen.append("first")

        first = asyncio.ensure_future(calls.run(work, sequence=1, timeout=5))
        await began.wait()
        first.cancel()
        second = asyncio.ensure_future(
            calls.run(lambda: seen.append("second"), sequence=2, timeout=5)
        )
        release.set()
        await second
        return seen

    assert asyncio.run(scenario()) == ["first", "second"]


def test_a_new_job_ends_calls_that_still_wait_and_counts_from_one() -> None:
    """Waiting calls of the old job fail at once; the new job's first call runs."""

    async def scenario() -> str:
        calls = OrderedCalls("test")
        waiting = asyncio.ensure_future(calls.run(lambda: None, sequence=7, timeout=5))
        await asyncio.sleep(0)
        calls.begin_job()
        with pytest.raises(Conflict, match="call 7"):
            await waiting
        return await calls.run(lambda: "new", sequence=1, timeout=5)

    assert asyncio.run(scenario()) == "new"


def test_a_number_is_used_once() -> None:
    """A repeated number is refused instead of run twice."""

    async def scenario() -> None:
        calls = OrderedCalls("test")
        await calls.run(lambda: None, sequence=1, timeout=5)
        await calls.run(lambda: None, sequence=1, timeout=5)

    with pytest.raises(Conflict, match="came again"):
        asyncio.run(scenario())


def test_a_turn_whose_caller_left_passes_unused() -> None:
    """It left before its turn came; the calls after it run in their order."""

    async def scenario() -> list[int]:
        calls, seen = OrderedCalls("test"), []
        left = [
            asyncio.ensure_future(calls.run(lambda n=n: seen.append(n), sequence=n, timeout=5))
            for n in (2, 3)
        ]
        last = asyncio.ensure_future(calls.run(lambda: seen.append(4), sequence=4, timeout=5))
        await asyncio.sleep(0)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert not seen
        await calls.run(lambda: seen.append(1), sequence=1, timeout=5)
        await last
        return seen

    assert asyncio.run(scenario()) == [1, 4]
