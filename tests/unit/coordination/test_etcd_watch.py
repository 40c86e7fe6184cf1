"""Where a watch goes on after its stream broke, by a scripted etcd."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from aetcd import rpc

from realloc.coordination.etcd_watch import EtcdWatch, History
from realloc.coordination.store import HistoryLost
from realloc.core.errors import Unavailable


class ScriptedStream:
    """A Watch call that answers what it was told to, then ends."""

    def __init__(self, responses: list[Any]) -> None:
        self.responses = responses
        self.request: Any = None

    async def write(self, request: Any) -> None:
        """The watch's create request."""
        self.request = request.create_request

    async def read(self) -> Any:
        """The next response."""
        return self.responses.pop(0) if self.responses else grpc.aio.EOF

    def cancel(self) -> None:
        """Nothing runs."""


def created() -> Any:
    """The answer to a create request."""
    return rpc.WatchResponse(created=True, header={"revision": 99})


def events(*revisions: int, header: int) -> Any:
    """Puts at some revisions; the store itself is at ``header`` already."""
    puts = [{"kv": {"key": b"/k", "mod_revision": revision}} for revision in revisions]
    return rpc.WatchResponse(header={"revision": header}, events=puts)


class Script:
    """Several streams, one after the other; then the store is closed."""

    def __init__(self, *streams: list[Any], histories: list[History | Unavailable]) -> None:
        self.streams = [ScriptedStream(responses) for responses in streams]
        self.opened: list[ScriptedStream] = []
        self.histories = histories

    def watch(self, start_revision: int) -> EtcdWatch:
        """A watch that meets this script."""
        return EtcdWatch(
            open_stream=self._open,
            read_history=self._read_history,
            prefix="/",
            next_revision=start_revision,
            timeout_seconds=1.0,
            is_closed=lambda: len(self.opened) == len(self.streams) and not self.histories,
        )

    def run(self, start_revision: int) -> tuple[list[int], list[int]]:
        """Revisions of the events, and those from which each stream was asked."""
        seen: list[int] = []

        async def read() -> None:
            async for event in self.watch(start_revision).events():
                seen.append(event.revision)

        with pytest.raises(Unavailable) as raised:
            asyncio.run(read())
        if "closed" not in str(raised.value):
            raise raised.value
        return seen, [stream.request.start_revision for stream in self.opened]

    def _open(self) -> ScriptedStream:
        self.opened.append(self.streams[len(self.opened)])
        return self.opened[-1]

    async def _read_history(self) -> History:
        history = self.histories.pop(0)
        if isinstance(history, Unavailable):
            raise history
        return history


ALIVE = History(identity=b"1", revision=99)


def test_a_watch_goes_on_after_its_last_event() -> None:
    """While it catches up, the header is ahead: only events and signs of progress count."""
    script = Script(
        [created()],
        [created(), events(5, 5, 7, header=99)],
        [created(), events(8, header=99), events(header=50)],
        [created(), events(51, header=51)],
        histories=[ALIVE] * 4,
    )
    seen, asked = script.run(5)
    assert seen == [5, 5, 7, 8, 51]
    assert asked == [5, 5, 8, 51]


def test_a_watch_waits_for_an_etcd_that_is_not_there() -> None:
    """An etcd that cannot be reached, before or between streams, is asked again."""
    gone = Unavailable("gone")
    script = Script(
        [created(), events(5, header=5)], [], histories=[gone, gone, ALIVE, gone, ALIVE]
    )
    assert script.run(5) == ([5], [5, 6])


@pytest.mark.parametrize(
    "history",
    [History(identity=b"2", revision=99), History(identity=b"1", revision=4)],
    ids=["another identity", "a smaller revision"],
)
def test_a_watch_on_another_history_raises(history: History) -> None:
    """A store with another identity, or one that has not come so far, lost its data."""
    script = Script([created(), events(5, header=5)], histories=[ALIVE, history])
    with pytest.raises(HistoryLost, match="without its data"):
        script.run(5)


def test_a_compacted_watch_names_the_revisions() -> None:
    """The error tells what was wanted and what is left."""
    answer = rpc.WatchResponse(created=True, canceled=True, compact_revision=42)
    script = Script([answer], histories=[ALIVE])
    with pytest.raises(HistoryLost, match="revision 5 on are wanted, those before 42"):
        script.run(5)
