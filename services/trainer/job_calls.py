"""The job that holds this shard: its calls run in the order of their numbers, until its end."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from realloc.core.errors import Conflict, ReallocError
from realloc.shard.ordered_calls import OrderedCalls
from services.trainer.engine import JobWorld, TrainerEngine
from services.trainer.model_locks import ModelLocks

Result = TypeVar("Result")

_IDLE_SECONDS = 5.0
"""A call that runs so long after its job ended is stuck in a collective."""


class JobCalls:
    """One job at a time. Used from one event loop."""

    def __init__(
        self,
        *,
        engine: TrainerEngine,
        calls: OrderedCalls,
        locks: ModelLocks,
        abandon: Callable[[str], None],
    ) -> None:
        """
        Args:
            abandon: ends the process where its engine is beyond repair; takes the reason.
        """
        self._engine = engine
        self._calls = calls
        self._locks = locks
        self._abandon = abandon
        self._world: JobWorld | None = None

    @property
    def world(self) -> JobWorld | None:
        """Of the job that holds this shard; None where none does."""
        return self._world

    @property
    def timeout_seconds(self) -> float:
        """Deadline of each of its calls."""
        return self._world.timeout_seconds if self._world else 0.0

    def require(self, job_id: str) -> JobWorld:
        """The world of the job.

        Raises:
            Conflict: another one holds this shard, or none.
        """
        if self._world is None or self._world.job_id != job_id:
            raise Conflict(f"this shard does not work for job {job_id!r}; start it first")
        return self._world

    async def start(self, world: JobWorld) -> None:
        """Form the job's world with its other ranks; no job holds this shard before."""
        self._calls.begin_job()
        self._world = world
        await self.beside(lambda: self._engine.start_job(world), world.timeout_seconds)

    async def end(self, job_id: str) -> None:
        """Free the engine; a call that never returns costs the process its life."""
        self._calls.begin_job()
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self.beside(self._end_engine, _IDLE_SECONDS)
        except TimeoutError:
            self._abandon(f"job {job_id} ended and a call or a transfer of it is stuck")
        except Exception as error:
            self._abandon(f"job {job_id} could not be ended: {error}")
        self._world = None

    async def beside(self, work: Callable[[], Result], timeout_seconds: float) -> Result:
        """Run work that has no number as soon as the engine's thread is free."""
        return await self._calls.run(work, sequence=0, timeout=timeout_seconds)

    async def run(self, sequence: int, work: Callable[[], Result]) -> Result:
        """Run work when its turn comes."""
        return await self._calls.run(work, sequence=sequence, timeout=self.timeout_seconds)

    async def or_skip(self, sequence: int, read: Callable[[], Result]) -> Result:
        """What a call needs before its turn; where that fails, its turn passes unused."""
        try:
            return await asyncio.to_thread(read)
        except ReallocError:
            await self.run(sequence, lambda: None)
            raise

    def _end_engine(self) -> None:
        self._locks.wait_unread(_IDLE_SECONDS)
        self._engine.end_job()
