"""Who may move weights now."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from realloc.core.errors import ResourceExhausted, Unavailable
from services.param_store.device_queue import DeviceQueue


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario with a deadline."""
    asyncio.run(asyncio.wait_for(scenario, 20))


class Log:
    """Work on devices that begins, and ends when told."""

    def __init__(self, queue: DeviceQueue) -> None:
        self.began: list[str] = []
        self._queue = queue
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, devices: set[int], seconds: float = 10.0) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._work(name, devices, seconds))
        return self._tasks[name]

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await settle()

    async def _work(self, name: str, devices: set[int], seconds: float) -> None:
        async with self._queue.held(devices, seconds):
            self.began.append(name)
            await self._ends[name].wait()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_disjoint_devices_work_together_and_others_wait() -> None:
    """{0,1} and {2,3} at once; {1,2} after both."""

    async def scenario() -> None:
        log = Log(DeviceQueue(8))
        log.start("a", {0, 1})
        log.start("b", {2, 3})
        log.start("c", {1, 2})
        await settle()
        assert log.began == ["a", "b"]
        await log.end("a")
        assert log.began == ["a", "b"]
        await log.end("b")
        assert log.began == ["a", "b", "c"]
        await log.end("c")

    run(scenario())


def test_nobody_overtakes_on_a_device_that_another_waits_for() -> None:
    """A small one behind a large one that waits does not starve it; a disjoint one passes."""

    async def scenario() -> None:
        log = Log(DeviceQueue(8))
        log.start("a", {0})
        await settle()
        log.start("large", {0, 1})
        log.start("small", {1})
        log.start("apart", {2})
        await settle()
        assert log.began == ["a", "apart"]
        await log.end("a")
        assert log.began == ["a", "apart", "large"]
        await log.end("large")
        assert log.began == ["a", "apart", "large", "small"]
        await log.end("small")
        await log.end("apart")

    run(scenario())


def test_waiting_has_a_bound_and_a_deadline() -> None:
    """A full queue refuses, a long wait ends by naming the device; both leave the queue clean."""

    async def scenario() -> None:
        queue = DeviceQueue(1)
        log = Log(queue)
        log.start("a", {0})
        await settle()
        late = log.start("late", {0}, seconds=0.05)
        await settle()
        with pytest.raises(ResourceExhausted):
            await log.start("refused", {0})
        with pytest.raises(Unavailable, match="device 0 was busy"):
            await late
        assert queue.num_waiting == 0
        log.start("next", {0})
        await settle()
        await log.end("a")
        assert log.began == ["a", "next"]
        await log.end("next")

    run(scenario())


def test_a_cancelled_one_lets_those_behind_it_pass() -> None:
    """Whoever waited only for the cancelled one begins at once."""

    async def scenario() -> None:
        log = Log(DeviceQueue(8))
        log.start("a", {0})
        await settle()
        waiting = log.start("waiting", {0, 1})
        log.start("behind", {1})
        await settle()
        waiting.cancel()
        await settle()
        assert log.began == ["a", "behind"]
        await log.end("behind")
        await log.end("a")

    run(scenario())
