"""Rewards of rollouts by a user's function, in processes of their own.

User code may print, raise, hang, exit or eat memory: each becomes one `JobFailed` that names
the row, and the next row meets a fresh process. It is separated from the service by process,
time limit, memory limit and an empty environment; it is not a sandbox against an attacker.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realloc.core.errors import Unavailable
from realloc.core.reward_function import RewardFunctionName
from services.generation.reward_child import RewardChild


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRow:
    """One rollout to be rewarded."""

    prompt: str
    response: str
    ground_truth: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the data row; JSON values."""
    where: str = ""
    """The row as errors name it, such as ``in row 17 of train.jsonl``."""


class RewardFunction:
    """A user's function, warm in `num_processes` processes, for one job."""

    def __init__(
        self,
        name: RewardFunctionName,
        *,
        timeout_seconds: float,
        memory_bytes: int,
        num_processes: int = 1,
    ) -> None:
        """Describe it; `start` runs it.

        Args:
            timeout_seconds: wall-clock limit of one call.
            memory_bytes: address space of each process.
            num_processes: calls that run at the same time.
        """
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._slots: asyncio.Queue[RewardChild | None] = asyncio.Queue(num_processes)
        self._num_processes = num_processes
        self._children: set[RewardChild] = set()
        self._closed = False
        for _ in range(num_processes):
            self._slots.put_nowait(None)

    @property
    def name(self) -> RewardFunctionName:
        return self._name

    async def start(self) -> None:
        """Start the first process, so that a broken file is seen before the first rollout.

        Raises:
            JobFailed: the file cannot be loaded.
        """
        child = await self._slots.get()
        try:
            child = await self._ready(child)
        finally:
            self._slots.put_nowait(child)

    async def score(self, rows: Sequence[RewardRow]) -> list[float]:
        """The rewards of these rows, in their order. Callers may overlap; calls take turns.

        Raises:
            JobFailed: for the first row that fails; the others are dropped.
            Unavailable: closed meanwhile.
        """
        rewards = [0.0] * len(rows)
        remaining = iter(range(len(rows)))

        async def work() -> None:
            for index in remaining:
                rewards[index] = await self._score_row(rows[index])

        workers = [asyncio.create_task(work()) for _ in range(min(self._num_processes, len(rows)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return rewards

    async def close(self) -> None:
        """Kill the processes; calls that run fail. Safe to call twice."""
        self._closed = True
        await asyncio.gather(*(child.close() for child in tuple(self._children)))
        self._children.clear()

    async def _score_row(self, row: RewardRow) -> float:
        request = {
            "prompt": row.prompt,
            "response": row.response,
            "ground_truth": row.ground_truth,
            "fields": dict(row.fields),
        }
        # A slot's wait is bounded: whoever holds one gives it back within the limits of a
        # start and a call.
        child = await self._slots.get()
        try:
            child = await self._ready(child)
            return await child.call(request, where=row.where, timeout_seconds=self._timeout_seconds)
        finally:
            self._slots.put_nowait(child)

    async def _ready(self, child: RewardChild | None) -> RewardChild:
        """A living process: this one, or a new one in its place."""
        if self._closed:
            raise Unavailable(f"reward function {self._name} is closed")
        if child is not None and child.is_alive:
            return child
        if child is not None:
            self._children.discard(child)
        child = await RewardChild.start(self._name, memory_bytes=self._memory_bytes)
        self._children.add(child)
        if self._closed:  # closed while it started
            await child.close()
        return child
