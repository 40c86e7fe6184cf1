"""The thread that owns a generation engine, and its face towards an event loop.

The thread does one thing at a time: a command (load, add, stage, commit, …) or a step of all
running requests. Commands wait for at most one step; while one runs, no token is made. So
weights change between two tokens of every request at once.

An engine that raises in a step is not trusted any more: all running requests end in the same
error, and the next `load` builds it anew.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from realloc.core.errors import Conflict, JobFailed, ReallocError, ResourceExhausted, Unavailable
from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.transfer.executor import TransferReport
from services.generation.engine import EngineSpec, GenerationEngine, Rollout, RolloutRequest

Result = TypeVar("Result")
_MAX_COMMANDS = 64
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCounters:
    """What a worker has done since it began."""

    num_rollouts: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    """Tokens of rollouts that have ended."""
    step_seconds: float = 0.0
    """Time within steps of the engine."""

    @property
    def tokens_per_second(self) -> float:
        """Response tokens per second of stepping."""
        return self.response_tokens / self.step_seconds if self.step_seconds else 0.0


class RolloutStream:
    """Rollouts on their way from the engine's thread to one caller of `generate`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, requests: Sequence[RolloutRequest]) -> None:
        self._loop = loop
        # Holds at most one entry per request, and one error.
        self._arrived: asyncio.Queue[Rollout | ReallocError] = asyncio.Queue()
        self.prompt_tokens = {one.request_id: len(one.prompt_tokens) for one in requests}
        self.left = False
        """The caller has gone; set before its requests are given up."""

    def send(self, item: Rollout | ReallocError) -> None:
        """Hand over a rollout or an error; called by the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    async def receive(self) -> Rollout:
        """The next rollout."""
        item = await self._arrived.get()
        if isinstance(item, ReallocError):
            raise item
        return item


class RolloutWorker:
    """Runs an engine for one event loop."""

    def __init__(self, engine: GenerationEngine, *, max_requests: int = 4_096) -> None:
        """Start the thread.

        Args:
            max_requests: requests that may run or wait in the engine at the same time.
        """
        self._engine = engine
        self._max_requests = max_requests
        self._commands: queue.Queue[_Command | None] = queue.Queue(_MAX_COMMANDS)
        self._cancelled: deque[tuple[RolloutStream, str]] = deque()
        self._running: dict[str, RolloutStream] = {}
        self._counters = RolloutCounters()
        self._broken: JobFailed | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> RolloutCounters:
        return self._counters

    @property
    def num_running(self) -> int:
        """Requests that have not ended."""
        return len(self._running)

    async def load(self, spec: EngineSpec, *, timeout_seconds: float) -> None:
        """Build the engine; an equal one is kept.

        Raises:
            InvalidInput: the engine cannot build this model.
            Conflict: rollouts run.
            Unavailable: not done in time; it may be done later.
        """
        await self._call(lambda: self._load(spec), timeout_seconds)

    async def generate(
        self, requests: Sequence[RolloutRequest], *, timeout_seconds: float
    ) -> AsyncGenerator[Rollout, None]:
        """Rollouts as they end. Leaving the iterator aborts the rest: close it (``aclosing``).

        Args:
            requests: request ids are unique among all that run.
            timeout_seconds: until the last rollout.

        Raises:
            InvalidInput: a wrong request; none begins.
            Conflict: a request id runs already.
            ResourceExhausted: too many requests.
            Unavailable: the time is over, or the worker closes.
            JobFailed: the engine failed.
        """
        stream = RolloutStream(asyncio.get_running_loop(), requests)
        deadline = time.monotonic() + timeout_seconds
        left = set(stream.prompt_tokens)
        try:
            await self._call(lambda: self._begin(requests, stream), timeout_seconds)
            while left:
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        rollout = await stream.receive()
                except TimeoutError:
                    raise Unavailable(
                        f"{len(left)} of {len(requests)} rollouts did not end within "
                        f"{timeout_seconds:g} s"
                    ) from None
                left.discard(rollout.request_id)
                yield rollout
        finally:
            stream.left = True
            self._cancelled.extend((stream, name) for name in left)

    async def parameter_specs(
        self, *, timeout_seconds: float
    ) -> Sequence[Mapping[str, ParameterSpec]]:
        """See `GenerationEngine.parameter_specs`."""
        return await self._call(self._engine.parameter_specs, timeout_seconds)

    async def stage_weights(
        self,
        session: TransferSession,
        programs: Sequence[TransferProgram],
        *,
        timeout_seconds: float,
    ) -> Sequence[TransferReport]:
        """See `GenerationEngine.stage_weights`; no token is made meanwhile."""
        return await self._call(
            lambda: self._engine.stage_weights(session, programs), timeout_seconds
        )

    async def commit_weights(self, weight_version: int, *, timeout_seconds: float) -> None:
        """Make staged weights live between two tokens of every running request."""
        await self._call(lambda: self._engine.commit_weights(weight_version), timeout_seconds)

    async def abort_weights(self, *, timeout_seconds: float) -> None:
        """Drop staged weights."""
        await self._call(self._engine.abort_weights, timeout_seconds)

    async def close(self) -> None:
        """End all requests with an error, free the engine, end the thread. Safe to call twice."""
        self._closing = True
        with suppress(queue.Full):  # then the thread is awake anyway
            self._commands.put_nowait(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)

    async def _call(self, work: Callable[[], Result], timeout_seconds: float) -> Result:
        """Have the thread do work between two steps."""
        if self._closing:
            raise Unavailable("the generation worker is closing")
        command = _Command(work=work, future=Future())
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise ResourceExhausted(
                f"{_MAX_COMMANDS} calls wait for the generation engine; try later"
            ) from None
        try:
            # Not wait_for: Python 3.11's loses a cancellation that meets the result.
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.wrap_future(command.future)
        except TimeoutError:
            raise Unavailable(
                f"the generation engine did not answer within {timeout_seconds:g} s"
            ) from None

    # From here on everything runs in the engine's thread.

    def _run(self) -> None:
        while not self._closing:
            command = self._next_command()
            if command is not None:
                command.run()
                continue
            self._abort_cancelled()
            if self._running:
                self._step()
        self._end_all(Unavailable("the generation worker closes"))
        self._drop_commands()
        self._engine.close()

    def _next_command(self) -> "_Command | None":
        """The next command; waits for one only where nothing runs."""
        try:
            return self._commands.get(block=not self._running)
        except queue.Empty:
            return None

    def _load(self, spec: EngineSpec) -> None:
        self._abort_cancelled()
        if self._running:
            raise Conflict(f"{len(self._running)} rollouts of another call still run")
        if self._broken is not None:
            self._engine.close()
            self._broken = None
        self._engine.load(spec)

    def _begin(self, requests: Sequence[RolloutRequest], stream: RolloutStream) -> None:
        self._abort_cancelled()
        if stream.left:  # while this command's turn came: what it gave up is forgotten by now
            return
        if self._broken is not None:
            raise self._broken
        ids = [one.request_id for one in requests]
        taken = [name for name in ids if name in self._running]
        if taken or len(set(ids)) < len(ids):
            raise Conflict(f"request ids are used twice: {', '.join(taken or ids)[:200]}")
        if len(self._running) + len(ids) > self._max_requests:
            raise ResourceExhausted(
                f"{len(ids)} requests beside the {len(self._running)} that run are more than "
                f"{self._max_requests}"
            )
        try:
            self._engine.add(requests)
        except Exception:
            self._engine.abort(ids)
            raise
        self._running.update((name, stream) for name in ids)

    def _step(self) -> None:
        began = time.monotonic()
        try:
            rollouts = self._engine.step()
        except Exception as error:
            self._broken = JobFailed(
                f"the generation engine failed: {type(error).__name__}: {error}"
            )
            self._end_all(self._broken)
            return
        seconds = time.monotonic() - began
        self._counters = replace(self._counters, step_seconds=self._counters.step_seconds + seconds)
        for rollout in rollouts:
            self._deliver(rollout)

    def _deliver(self, rollout: Rollout) -> None:
        stream = self._running.pop(rollout.request_id, None)
        if stream is None:
            return
        now = self._counters
        self._counters = replace(
            now,
            num_rollouts=now.num_rollouts + 1,
            prompt_tokens=now.prompt_tokens + stream.prompt_tokens[rollout.request_id],
            response_tokens=now.response_tokens + len(rollout.tokens),
        )
        stream.send(rollout)

    def _abort_cancelled(self) -> None:
        """Drop what callers no longer wait for, unless its id is another caller's by now."""
        ids = []
        while self._cancelled:
            stream, name = self._cancelled.popleft()
            if self._running.get(name) is stream:
                del self._running[name]
                ids.append(name)
        if ids and self._broken is None:
            self._engine.abort(ids)

    def _end_all(self, error: ReallocError) -> None:
        for stream in set(self._running.values()):
            stream.send(error)
        self._running.clear()

    def _drop_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            if command is not None:
                command.future.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """Work for the engine's thread, and where its result goes."""

    work: Callable[[], Any]
    future: "Future[Any]"

    def run(self) -> None:
        """Do it, unless nobody waits any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
