"""Processes that start one stage after the other and stop in the reverse order."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from deploy.local.supervisor import Program, Supervised


class Stages:
    """What runs on this machine, each process restarted whenever it ends."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._running: list[list[Supervised]] = []

    async def start(self, programs: Sequence[Program]) -> None:
        """Start a further stage; returns when its processes exist."""
        stage = [Supervised(program, self._report) for program in programs]
        self._running.append(stage)
        await asyncio.gather(*(each.start() for each in stage))

    async def stop(self) -> None:
        """Stop all, the last stage first; what ends by itself meanwhile is not started again."""
        for stage in self._running:
            for each in stage:
                each.retire()
        for stage in reversed(self._running):
            await asyncio.gather(*(each.stop() for each in stage))
        self._running.clear()

    def supervised(self, name: str) -> Supervised:
        """The supervisor of one process."""
        return next(each for stage in self._running for each in stage if each.program.name == name)

    def pids(self) -> Mapping[str, int]:
        """Process id of everything that runs, by name."""
        return {
            each.program.name: each.pid
            for stage in self._running
            for each in stage
            if each.pid is not None
        }
