"""Chunks: the operations of a program, in the one order that all endpoints share."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise

from realloc.core.transfer import TransferProgram
from realloc.transfer.communicator import Communicator, Direction, Memory
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

    @property
    def num_elements(self) -> int:
        return self.last - self.first

    def cut(self, most: int) -> "Iterator[Chunk]":
        """The chunk in parts of at most `most` elements."""
        for first in range(self.first, self.last, most):
            yield replace(self, first=first, last=min(first + most, self.last))

    def order(self, endpoint: int) -> tuple[int, int, int, int]:
        """Its place in the order that all endpoints share."""
        pair = (endpoint, self.peer)
        sender, receiver = pair if self.direction is Direction.SEND else pair[::-1]
        return self.round, self.number, sender, receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopy:
    """A part of a message to oneself."""

    sent: Chunk
    received: Chunk

    def order(self, endpoint: int) -> tuple[int, int, int, int]:
        return self.sent.order(endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What an endpoint does at once, of one round."""

    chunks: list[Chunk]
    """From and to others."""
    copies: list[LocalCopy]
    """Within the process, while the chunks are on their way."""


class ProgramChunks:
    """A program cut into chunks."""

    def __init__(
        self,
        program: TransferProgram,
        chunk_elements: int,
        in_place_elements: int,
        communicator: Communicator,
        uncast: Collection[int],
    ) -> None:
        """Cut as both sides of each stream do.

        Args:
            chunk_elements: most elements of a chunk that fits a staging buffer.
            in_place_elements: most elements of one that needs none, within the process, or of
                one that is cast for open memory.
            uncast: endpoints that cast nothing, the same on both sides.
        """
        self._chunk_elements = chunk_elements
        self._in_place_elements = in_place_elements
        self._communicator = communicator
        self._uncast = frozenset(uncast)
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

    def local_matches(self) -> bool:
        """Whether the endpoint sends itself just what it receives from itself."""
        both = [[(s.round, s.num_elements) for s in streams] for streams in self._local_streams()]
        return both[0] == both[1]

    def batches(self, size: int) -> Iterator[Batch]:
        """All in the shared order, at most `size` chunks from and to others at once."""
        everything: list[Chunk | LocalCopy] = [*self._remote_chunks(), *self._local_copies()]
        everything.sort(key=lambda item: item.order(self._endpoint))
        for _, items in groupby(everything, key=lambda item: item.order(self._endpoint)[0]):
            while taken := list(islice(items, size)):
                yield Batch(
                    chunks=[item for item in taken if isinstance(item, Chunk)],
                    copies=[item for item in taken if isinstance(item, LocalCopy)],
                )

    def _remote_chunks(self) -> Iterator[Chunk]:
        for direction, streams in (
            (Direction.SEND, self._sends),
            (Direction.RECEIVE, self._receives),
        ):
            for stream in streams:
                if stream.peer != self._endpoint:
                    yield from _chunks(stream, direction, self._ends(stream))

    def _local_copies(self) -> Iterator[LocalCopy]:
        for sent, received in zip(*self._local_streams(), strict=True):
            ends = self._ends(sent)
            for pair in zip(
                _chunks(sent, Direction.SEND, ends),
                _chunks(received, Direction.RECEIVE, ends),
                strict=True,
            ):
                yield LocalCopy(sent=pair[0], received=pair[1])

    def _local_streams(self) -> tuple[list[Stream], list[Stream]]:
        """What is sent to oneself and received from oneself, by round."""
        here = self._endpoint
        sends, receives = (
            [stream for stream in streams if stream.peer == here]
            for streams in (self._sends, self._receives)
        )
        return sends, receives

    def _ends(self, stream: Stream) -> list[int]:
        """Where a stream is cut: first element, end of each chunk."""
        memory = self._communicator.memory
        if stream.peer != self._endpoint and memory(stream.peer) is Memory.ANY:
            return [0, *chunk_ends(stream.num_elements, stream.cut, self._chunk_elements).tolist()]
        # Memory that is lent is written and read as it lies, wherever it is cut.
        return [*range(0, stream.num_elements, self._most(stream)), stream.num_elements]

    def _most(self, stream: Stream) -> int:
        """Elements of a chunk, at most."""
        if stream.peer == self._endpoint:
            return self._in_place_elements
        if self._communicator.memory(stream.peer) is Memory.LENT:
            return self._chunk_elements
        whole = {stream.peer, self._endpoint} <= self._uncast
        return stream.num_elements if whole else self._in_place_elements


def _chunks(stream: Stream, direction: Direction, ends: list[int]) -> Iterator[Chunk]:
    for number, (first, last) in enumerate(pairwise(ends)):
        yield Chunk(stream=stream, number=number, first=first, last=last, direction=direction)
