"""A watch on etcd that goes on after lost connections and restarts.

The next revision to ask for is one past the last event that was handed over, never the header's
revision of an event response: while a watch catches up, the header already names the present.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from realloc.coordination.etcd_messages import event_from_proto, watch_request
from realloc.coordination.store import Event, HistoryLost
from realloc.core.errors import Unavailable

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""Pauses between attempts to reach etcd again: the first, doubled up to the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Which history of events an etcd keeps, and how far it has come."""

    identity: bytes
    """Random, written once into a new etcd: another one means that the data were lost."""
    revision: int


@dataclass(slots=True, kw_only=True)
class EtcdWatch:
    """One watch of one prefix."""

    open_stream: Callable[[], Any]
    """A new call of etcd's Watch."""
    read_history: Callable[[], Awaitable[History]]
    """Linearizable; raises Unavailable."""
    prefix: str
    next_revision: int
    timeout_seconds: float
    is_closed: Callable[[], bool]
    identity: bytes | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """See `Store.watch`."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._check_history()
                async with contextlib.aclosing(self._responses()) as responses:
                    async for response in responses:
                        pause = FIRST_PAUSE_SECONDS
                        for event in self._accept(response):
                            yield event
            except HistoryLost:
                raise
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, Unavailable):
                pass
            except asyncio.CancelledError:
                if is_task_cancelled():
                    raise
                # The channel was closed, which cancels its calls; a new one may be there.
            self._raise_if_closed()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _check_history(self) -> None:
        history = await self.read_history()
        if self.identity is None:
            self.identity = history.identity
        if history.identity != self.identity or history.revision < self.next_revision - 1:
            raise HistoryLost(
                f"etcd came back without its data while {self.prefix!r} was watched from revision "
                f"{self.next_revision} on; list again and watch from there"
            )

    async def _responses(self) -> AsyncGenerator[Any, None]:
        """The responses of one stream, until it ends."""
        call = self.open_stream()
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await call.write(watch_request(self.prefix, self.next_revision))
                response = await call.read()
            while response is not grpc.aio.EOF:
                yield response
                if response.canceled:
                    return
                response = await call.read()
        finally:
            call.cancel()

    def _accept(self, response: Any) -> list[Event]:
        if response.compact_revision:
            raise HistoryLost(
                f"events of {self.prefix!r} from revision {self.next_revision} on are wanted, "
                f"those before {response.compact_revision} are compacted; list again and watch "
                "from there"
            )
        events = [event_from_proto(event) for event in response.events]
        if events:
            self.next_revision = events[-1].revision + 1
        elif not (response.created or response.canceled):
            self.next_revision = max(self.next_revision, response.header.revision + 1)
        return events

    def _raise_if_closed(self) -> None:
        if self.is_closed():
            raise Unavailable("the store is closed; open a new one")


def is_task_cancelled() -> bool:
    """True where the running task itself is being cancelled, not only a call inside it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
