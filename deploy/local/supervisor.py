"""Keeps processes running: starts them stage by stage, restarts what ends, stops in reverse.

No process outlives the supervisor, even when it is killed (`deploy.local.parent`), and Ctrl-C
reaches the supervisor alone: it decides the order of the end.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.parent import ending_with_parent

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 10.0
_STEADY_SECONDS = 30.0
"""A process that ran so long may be restarted without backing off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A process to keep running."""

    name: str
    command: Sequence[str]
    log: Path | None
    """File that gets its output; None leaves it the supervisor's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of the supervisor's own."""
    stop_seconds: float = 15.0
    """Longest time to end after SIGTERM."""


class Supervised:
    """One program, restarted with a growing pause whenever it ends."""

    def __init__(self, program: Program, report: Callable[[str], None]) -> None:
        self.program = program
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id, or None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it, also again after a stop; returns when the process exists."""
        self._stopping = False
        self._started.clear()
        self._task = asyncio.create_task(self._keep(), name=self.program.name)
        await self._started.wait()

    def retire(self) -> None:
        """Do not start it again once it has ended."""
        self._stopping = True

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long."""
        self.retire()
        seconds = self.program.stop_seconds
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), seconds)
            except TimeoutError:
                self._report(f"{self.program.name} did not stop in {seconds:.0f} s: killed")
                self._process.kill()
                await self._process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._stopping:
            began = time.monotonic()
            status = await self._run_once()
            if self._stopping:
                return
            if time.monotonic() - began > _STEADY_SECONDS:
                backoff = _FIRST_BACKOFF
            where = f" (log: {self.program.log})" if self.program.log else ""
            self._report(
                f"{self.program.name} ended with status {status}; starting it again in "
                f"{backoff:.1f} s{where}"
            )
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    async def _run_once(self) -> int:
        with self.program.log.open("ab") if self.program.log else nullcontext() as log:
            self._process = await asyncio.create_subprocess_exec(
                *ending_with_parent(self.program.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.program.environment},
                start_new_session=True,
            )
        self._started.set()
        return await self._process.wait()
