"""Runs blocking calls in one thread, in the order of their sequence numbers.

    sequence 1, 2, 3 … per job     a call waits until all before it have ended
    sequence 0                     runs as soon as the thread is idle

A call whose number never comes would hold all later ones: each wait has a deadline.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from realloc.core.errors import Conflict, Unavailable

Result = TypeVar("Result")


class OrderedCalls:
    """The order in which one shard works. Used from one event loop."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._passed: set[int] = set()
        """Turns to come that nobody will take."""
        self._next = 1
        self._begun = 0
        self._job = 0
        self._running = 0

    @property
    def is_idle(self) -> bool:
        """True where no call runs."""
        return self._running == 0

    async def run(self, work: Callable[[], Result], *, sequence: int, timeout: float) -> Result:
        """Run work when its turn comes, and end its turn whatever happens.

        A caller that is cancelled does not stop work that has begun: a collective must end
        on every rank, and the next call's turn comes after it.

        Args:
            timeout: seconds to wait for the turn; the work bounds itself.

        Raises:
            Unavailable: the turn did not come in time.
            Conflict: the job ended while the call waited, or its turn is over.
        """
        if sequence:
            await self._turn(sequence, timeout)
            self._begun = sequence
        job = self._job
        self._running += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(lambda _: self._ended(job, sequence))
        return await asyncio.shield(future)

    def begin_job(self) -> None:
        """Count from 1 again; calls that still wait for a turn fail with `Conflict`."""
        self._next = 1
        self._begun = 0
        self._passed.clear()
        self._job += 1
        for sequence, turn in self._turns.items():
            if not turn.done():
                turn.set_exception(Conflict(f"the job ended before call {sequence} began"))
        self._turns.clear()

    def close(self) -> None:
        """Accept no more work."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, sequence: int, timeout: float) -> None:
        known = sequence in self._turns or sequence in self._passed
        if known or sequence < self._next or sequence <= self._begun:
            raise Conflict(f"call {sequence} came again; this shard is at {self._next}")
        if sequence == self._next:
            return
        job = self._job
        turn = self._turns[sequence] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            if job == self._job:  # the calls after this one need not wait for it
                self._turns.pop(sequence, None)
                self._passed.add(sequence)
                self._admit()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"call {sequence} waited {timeout:.0f} s for call {self._next} before it"
                ) from None
            raise

    def _ended(self, job: int, sequence: int) -> None:
        self._running -= 1
        if job == self._job and sequence:
            self._next = sequence + 1
            self._admit()

    def _admit(self) -> None:
        """Let the next call run that somebody still wants."""
        while self._next in self._passed:
            self._passed.remove(self._next)
            self._next += 1
        turn = self._turns.pop(self._next, None) if self._begun < self._next else None
        if turn is not None and not turn.done():
            turn.set_result(None)
