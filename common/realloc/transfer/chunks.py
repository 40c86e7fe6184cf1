"""Chunks: the operations of a program, in the one order that all endpoints share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

import numpy as np

from realloc.core.transfer import Int64, TransferProgram
from realloc.transfer.communicator import Direction
from realloc.transfer.cuts import chunk_ends
from realloc.transfer.streams import Piece, Stream, streams_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One operation: a part of a stream."""

    stream: Stream
    number: int
    """Of the stream's chunks."""
    first: int
    last: int
    """Elements first … last − 1 of the stream."""
    direction: Direction

    def pieces(self) -> tuple[Piece, ...]:
        """Where its elements lie, in order."""
        return tuple(self.stream.pieces(self.first, self.last))

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
        self._cuts: dict[int, Int64] = {}

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

    def streams(self, direction: Direction, peer: int) -> list[Stream]:
        """What goes to or comes from a peer, by round."""
        streams = self._sends if direction is Direction.SEND else self._receives
        return [stream for stream in streams if stream.peer == peer]

    def peers(self) -> list[int]:
        """Other endpoints, ascending."""
        both = {stream.peer for stream in (*self._sends, *self._receives)}
        return sorted(both - {self._endpoint})

    def cut(self, stream: Stream, ends: Int64) -> None:
        """Cut a stream as both sides agreed, instead of evenly."""
        self._cuts[id(stream)] = ends

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
            Chunk(stream=stream, number=number, first=first, last=last, direction=direction)
            for direction, streams in (
                (Direction.SEND, self._sends),
                (Direction.RECEIVE, self._receives),
            )
            for stream in streams
            if stream.peer != self._endpoint
            for number, (first, last) in enumerate(pairwise(self._ends(stream)))
        ]
        return sorted(chunks, key=lambda chunk: chunk.order(self._endpoint))

    def _ends(self, stream: Stream) -> list[int]:
        ends = self._cuts.get(id(stream))
        if ends is None:
            ends = chunk_ends(stream.num_elements, np.empty(0, np.int64), self.chunk_elements)
        return [0, *ends.tolist()]
