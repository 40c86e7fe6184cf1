"""Unix sockets between the endpoints of one host, over which they lend each other memory.

Each end sends *offers* (here in a segment of mine lies your next message, or here it shall go)
and *returns* (I have read, or written, what you offered). An offer of a segment that the peer
has not seen yet carries what it needs to open it, with a file descriptor where there is one. A
socket ends when its process does, so a death is noticed at once.
"""

import os
import select
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from torch.distributed.distributed_c10d import Store

from realloc.core.errors import Unavailable

_HEADER = struct.Struct("<cQI")
"""Kind, number of an offer, bytes that follow: the parts of an offer."""
_RETURN = b"R"
_PART = struct.Struct("<QQQQQHB")
"""Segment, offset, rows, row bytes, stride bytes; bytes of the description that follows, and
whether a file descriptor comes with it."""
_HELLO = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedPart:
    """A strided rectangle of a message: where it lies in a segment of the peer."""

    segment: int
    offset: int
    """Byte of the segment where it begins."""
    rows: int
    row_bytes: int
    stride_bytes: int
    """From one row to the next."""
    description: bytes = b""
    """What opens the segment; empty once the peer has opened it."""
    descriptor: int | None = None
    """File that holds the segment, with the description; the receiver closes it."""

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


class Use(Enum):
    """What the peer shall do with memory that it is offered."""

    READ = b"O"
    WRITE = b"W"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Memory for one message."""

    number: int
    """Of the offers of this end of the link."""
    use: Use
    parts: tuple[OfferedPart, ...]
    """In the order of the message."""

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


class LinkClosed(Exception):
    """The peer is gone."""


class Link:
    """One end of a pair. One thread uses it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._bytes = bytearray()
        self._descriptors: deque[int] = deque()
        self._offers: dict[Use, deque[Offer]] = {use: deque() for use in Use}
        self._returned: set[int] = set()
        self._outgoing: deque[tuple[bytes, Sequence[int]]] = deque()

    def offer(self, offer: Offer) -> None:
        """Let the peer use memory of mine."""
        parts = [
            _PART.pack(
                part.segment,
                part.offset,
                part.rows,
                part.row_bytes,
                part.stride_bytes,
                len(part.description),
                part.descriptor is not None,
            )
            + part.description
            for part in offer.parts
        ]
        body = b"".join(parts)
        files = [part.descriptor for part in offer.parts if part.descriptor is not None]
        self._send(_HEADER.pack(offer.use.value, offer.number, len(body)) + body, files)

    def give_back(self, number: int) -> None:
        """Tell the peer that I am through with its offer of this number."""
        self._send(_HEADER.pack(_RETURN, number, 0), [])

    def next_offer(self, use: Use, deadline: float) -> Offer | None:
        """The peer's next offer for this use; None when the deadline has passed."""
        while not self._offers[use]:
            if not self._read(deadline):
                return None
        return self._offers[use].popleft()

    def wait_returned(self, number: int, deadline: float) -> bool:
        """Whether the peer was through with my offer of this number before the deadline."""
        while number not in self._returned:
            if not self._read(deadline):
                return False
        self._returned.discard(number)
        return True

    def close(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _send(self, message: bytes, files: Sequence[int]) -> None:
        # What the socket does not take at once goes out while this end waits for the other.
        self._outgoing.append((message, files))
        self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            message, files = self._outgoing[0]
            try:
                sent = socket.send_fds(self._socket, [message], files)
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkClosed(str(error)) from error
            self._outgoing.popleft()
            if sent < len(message):
                self._outgoing.appendleft((message[sent:], []))

    def _read(self, deadline: float) -> bool:
        """Take in what has arrived; wait until the deadline for something to arrive."""
        left = max(deadline - time.monotonic(), 0.0)
        waiting = [self._socket] if self._outgoing else []
        try:
            readable, writable, _ = select.select([self._socket], waiting, [], left)
            if writable:
                self._flush()
            if not readable:
                return bool(writable)
            data, files, _, _ = socket.recv_fds(self._socket, 1 << 16, 64)
        except (OSError, ValueError) as error:
            raise LinkClosed(str(error)) from error
        if not data:
            raise LinkClosed("connection closed")
        self._descriptors.extend(files)
        self._bytes += data
        while self._take_one():
            pass
        return True

    def _take_one(self) -> bool:
        """Take one whole message off the bytes that arrived."""
        if len(self._bytes) < _HEADER.size:
            return False
        kind, number, size = _HEADER.unpack_from(self._bytes)
        end = _HEADER.size + size
        if len(self._bytes) < end:
            return False
        body = bytes(self._bytes[_HEADER.size : end])
        del self._bytes[:end]
        if kind == _RETURN:
            self._returned.add(number)
        else:
            use = Use(kind)
            self._offers[use].append(Offer(number=number, use=use, parts=self._parts(body)))
        return True

    def _parts(self, body: bytes) -> tuple[OfferedPart, ...]:
        parts, at = [], 0
        while at < len(body):
            segment, offset, rows, row_bytes, stride, extra, has_file = _PART.unpack_from(body, at)
            at += _PART.size
            parts.append(
                OfferedPart(
                    segment=segment,
                    offset=offset,
                    rows=rows,
                    row_bytes=row_bytes,
                    stride_bytes=stride,
                    description=body[at : at + extra],
                    descriptor=self._descriptors.popleft() if has_file else None,
                )
            )
            at += extra
        return tuple(parts)


def connect_links(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    peers: Sequence[int],
    timeout_seconds: float,
) -> dict[int, Link]:
    """Connect to some peers of one host, which do the same at the same time.

    The lower index of a pair listens in a folder that only this user can read; the address
    travels through the store.

    Raises:
        Unavailable: a peer did not come within the time.
    """
    deadline = time.monotonic() + timeout_seconds
    links: dict[int, Link] = {}
    with tempfile.TemporaryDirectory(prefix="realloc-") as folder:
        address = os.path.join(folder, "link")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(len(peers) + 1)
            store.set(_key(group_id, endpoint), address)
            try:
                for peer in (peer for peer in peers if peer < endpoint):
                    links[peer] = Link(_call(store, _key(group_id, peer), endpoint, deadline))
                while len(links) < len(peers):
                    peer, connection = _answer(listener, deadline)
                    links[peer] = Link(connection)
            except (OSError, RuntimeError) as error:
                missing = ", ".join(f"endpoint {peer}" for peer in sorted({*peers} - {*links}))
                for link in links.values():
                    link.close()
                raise Unavailable(
                    f"endpoint {endpoint}: {missing} of transfer group {group_id!r} did "
                    f"not connect within {timeout_seconds:g} s: {error}"
                ) from error
    return links


def _key(group_id: str, endpoint: int) -> str:
    return f"link/{group_id}/{endpoint}"


def _call(store: Store, key: str, endpoint: int, deadline: float) -> socket.socket:
    left = max(deadline - time.monotonic(), 0.001)
    store.wait([key], timedelta(seconds=left))
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(left)
    connection.connect(store.get(key).decode())
    connection.sendall(_HELLO.pack(endpoint))
    return connection


def _answer(listener: socket.socket, deadline: float) -> tuple[int, socket.socket]:
    listener.settimeout(max(deadline - time.monotonic(), 0.001))
    connection, _ = listener.accept()
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
    if len(hello) < _HELLO.size:
        raise ConnectionError("a peer left while connecting")
    return _HELLO.unpack(hello)[0], connection
