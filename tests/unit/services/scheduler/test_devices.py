"""Gangs of devices."""

import asyncio

from services.scheduler.devices import Devices


def run_gangs(*gangs: set[int]) -> list[str]:
    """Hold each gang in turn as it becomes free; the order of begins and ends."""
    log: list[str] = []

    async def one(devices: Devices, index: int, gang: set[int]) -> None:
        async with devices.reserve(gang):
            log.append(f"+{index}")
            for _ in range(5):
                await asyncio.sleep(0)
            log.append(f"-{index}")

    async def scenario() -> None:
        devices = Devices()
        async with asyncio.timeout(5):
            await asyncio.gather(*(one(devices, i, gang) for i, gang in enumerate(gangs)))

    asyncio.run(scenario())
    return log


def test_gangs_that_share_a_device_take_turns_in_order() -> None:
    """No device is held twice, and who came first goes first."""
    assert run_gangs({0, 1}, {1, 2}, {2, 3}) == ["+0", "-0", "+1", "-1", "+2", "-2"]


def test_gangs_without_a_common_device_run_side_by_side() -> None:
    """A waiting gang holds back nobody who wants other devices."""
    log = run_gangs({0}, {0, 1}, {2})
    assert log.index("+2") < log.index("-0")
    assert log.index("-0") < log.index("+1")


def test_a_gang_that_gives_up_frees_its_place() -> None:
    """A cancelled wait does not block those behind it."""

    async def scenario() -> bool:
        devices = Devices()
        async with devices.reserve({0}):
            waiting = asyncio.ensure_future(_hold(devices, {0, 1}))
            await asyncio.sleep(0)
            behind = asyncio.ensure_future(_hold(devices, {1}))
            await asyncio.sleep(0)
            waiting.cancel()
            async with asyncio.timeout(5):
                return await behind

    assert asyncio.run(scenario())


async def _hold(devices: Devices, gang: set[int]) -> bool:
    async with devices.reserve(gang):
        return True
