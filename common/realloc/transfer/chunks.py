"""Chunks: the operations of a program, in the one order that all endpoints share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from realloc.core.transfer import TransferProgram
from realloc.transfer.communicator import Direction
from realloc.transfer.streams import Piece, Stream, streams_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One operation: a part of a stream."""

    stream: Stream
    number: int
    direction: Direction

    @property
    def peer(self) -> int:
        return self.stream.peer

    @property
    def round(self) -> int:
        return self.stream.round

    def order(self, endpoint: int) -> tuple[int, int, int, int]:
        """Its place in the order that all endpoints share."""
        pair = (endpoint, self.peer)
        sender, receiver = pair if self.direction is Direction.SEND else pair[::-1]
        return self.round, self.number, sender, receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopy:
    """A part of a message to oneself."""

    round: int
    sent: tuple[Piece, ...]
    received: tuple[Piece, ...]


class ProgramChunks:
    """A program cut into chunks of at most `chunk_elements`."""

    def __init__(self, program: TransferProgram, chunk_elements: int) -> None:
        self.chunk_elements = chunk_elements
        self._endpoint = program.endpoint
        self._sends = streams_of(program.sends)
        self._receives = streams_of(program.receives)

    @property
    def sent_elements(self) -> int:
        """Elements that go to other endpoints."""
        return sum(s.num_elements for s in self._sends if s.peer != self._endpoint)

    @property
    def received_elements(self) -> int:
        """Elements that come from other endpoints."""
        return sum(s.num_elements for s in self._receives if s.peer != self._endpoint)

    @property
    def local_elements(self) -> int:
        """Elements that stay in the process."""
        return sum(s.num_elements for s in self._receives if s.peer == self._endpoint)

    def pieces(self, chunk: Chunk) -> tuple[Piece, ...]:
        """Where the elements of a chunk lie, in order."""
        first = chunk.number * self.chunk_elements
        last = min(first + self.chunk_elements, chunk.stream.num_elements)
        return tuple(chunk.stream.pieces(first, last))

    def batches(self, size: int) -> Iterator[list[Chunk]]:
        """Chunks from and to others in the shared order, at most `size` of one round at once."""
        for _, chunks in groupby(self._ordered(), key=lambda chunk: chunk.round):
            while batch := list(islice(chunks, size)):
                yield batch

    def local_copies(self) -> Iterator[LocalCopy]:
        """Messages to oneself, by round."""
        sends = [stream for stream in self._sends if stream.peer == self._endpoint]
        receives = [stream for stream in self._receives if stream.peer == self._endpoint]
        for sent, received in zip(sends, receives, strict=True):
            for first in range(0, sent.num_elements, self.chunk_elements):
                last = min(first + self.chunk_elements, sent.num_elements)
                yield LocalCopy(
                    round=sent.round,
                    sent=tuple(sent.pieces(first, last)),
                    received=tuple(received.pieces(first, last)),
                )

    def local_matches(self) -> bool:
        """Whether the endpoint sends itself just what it receives from itself."""
        both = [
            [(s.round, s.num_elements) for s in streams if s.peer == self._endpoint]
            for streams in (self._sends, self._receives)
        ]
        return both[0] == both[1]

    def _ordered(self) -> list[Chunk]:
        chunks = [
            Chunk(stream=stream, number=number, direction=direction)
            for direction, streams in (
                (Direction.SEND, self._sends),
                (Direction.RECEIVE, self._receives),
            )
            for stream in streams
            if stream.peer != self._endpoint
            for number in range(stream.num_chunks(self.chunk_elements))
        ]
        return sorted(chunks, key=lambda chunk: chunk.order(self._endpoint))
