"""Takes chunks out of parameters and puts them in, by the way that leads to each peer.

A chunk that is one run of memory, in the element type that moves, is sent and received in
place; memory that the peer can read is lent as it is. Only other chunks pass through staging.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from realloc.core.transfer import Int64
from realloc.transfer.chunks import Chunk, LocalCopy
from realloc.transfer.communicator import (
    Borrowed,
    Communicator,
    Direction,
    Memory,
    Pending,
    Region,
)
from realloc.transfer.ledger import Ledger
from realloc.transfer.matching import Strip, copy_matched
from realloc.transfer.parameters import Parameters
from realloc.transfer.staging import StagingBuffers
from realloc.transfer.streams import Piece, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A chunk under way, and what it takes up."""

    chunk: Chunk
    pieces: tuple[Piece, ...]
    pending: Pending
    buffers: tuple[torch.Tensor, ...] = ()
    """Staging buffers that the chunk moves through, if it does."""
    elements: tuple[torch.Tensor, ...] = ()
    """The chunk as it moves, in parts of a buffer each; empty where it is lent as it is."""
    borrowed: Borrowed | None = None
    """The operation as such where it is done in the peer's memory."""


class Carrier:
    """What one endpoint does with each chunk; `executor` says when."""

    def __init__(
        self,
        *,
        communicator: Communicator,
        source: Parameters,
        destination: Parameters,
        staging: StagingBuffers,
        dtype: torch.dtype,
        ledger: Ledger,
    ) -> None:
        self._communicator = communicator
        self._source = source
        self._destination = destination
        self._staging = staging
        self._dtype = dtype
        self._ledger = ledger
        self._chunk_elements = staging.chunk_bytes // dtype.itemsize
        self._plain = source.all_of(dtype) and destination.all_of(dtype)
        self._lends = destination.all_of(dtype) and all(map(communicator.lends, destination.used))

    def runs(self, direction: Direction, stream: Stream, least: int) -> Int64:
        """Begin and end of the runs of a stream that may move as they are, [runs, 2]."""
        parameters = self._source if direction is Direction.SEND else self._destination
        movable = parameters.in_place(self._dtype, self._communicator.device)
        return stream.runs(least, movable)

    def buffers_for(self, chunk: Chunk) -> int:
        """Most staging buffers that a chunk takes."""
        lent = self._communicator.memory(chunk.peer) is not Memory.ANY
        if lent and self._plain and (self._lends or chunk.direction is Direction.SEND):
            return 0
        return -(-chunk.num_elements // self._chunk_elements)

    def start(self, chunk: Chunk) -> InFlight:
        """Hand a chunk to the communicator.

        Raises:
            Unavailable: the peer is gone.
        """
        start = self._start_send if chunk.direction is Direction.SEND else self._start_receive
        return start(chunk, chunk.pieces())

    def started(self, item: InFlight) -> None:
        """Enter what was sent into the ledger."""
        if item.chunk.direction is Direction.SEND and item.borrowed is None:
            for part, moved in self._parts(item.chunk, item.elements):
                self._ledger.sent(part, moved)

    def finish(self, done: InFlight) -> None:
        """A chunk is through: put in place what came, free what it took up.

        Raises:
            Unavailable: the peer is gone.
        """
        if done.chunk.direction is Direction.RECEIVE:
            self._put_in_place(done)
        elif done.borrowed is not None:
            self._write(done, done.borrowed)
        for buffer in done.buffers:
            self._staging.give_back(buffer)

    def copy(self, copy: LocalCopy) -> None:
        """Copy what stays in the process."""
        if self._plain:
            copy_matched(
                map(self._destination.strip, copy.received.pieces()),
                map(self._source.strip, copy.sent.pieces()),
            )
            self._ledger.sent(copy.sent, None)
            self._ledger.received(copy.received, None)
            return
        most = self._chunk_elements
        for sent, received in zip(copy.sent.cut(most), copy.received.cut(most), strict=True):
            buffer = self._staging.take()
            elements = self._elements_of(buffer, sent)
            self._source.pack(sent.pieces(), elements)
            self._ledger.sent(sent, elements)
            self._destination.unpack(received.pieces(), elements)
            self._ledger.received(received, elements)
            self._staging.give_back(buffer)

    def _start_send(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Send the parameters' own memory where it will do, else pack."""
        peer, round_ = chunk.peer, chunk.round
        memory = self._communicator.memory(peer)
        if memory is Memory.OPEN:
            return self._start_loan(chunk, pieces)
        buffers: tuple[torch.Tensor, ...] = ()
        if memory is Memory.LENT:
            casts: tuple[torch.Tensor, ...] = ()
            if not self._source.all_of(self._dtype):
                buffers, casts = self._take_buffers(chunk)
            borrowed = self._communicator.borrow(self._size(chunk), peer=peer, round=round_)
            return InFlight(
                chunk=chunk,
                pieces=pieces,
                pending=borrowed,
                buffers=buffers,
                elements=casts,
                borrowed=borrowed,
            )
        elements = self._source.direct(pieces, self._dtype, self._communicator.device)
        if elements is None:
            buffers = (self._staging.take(),)
            elements = self._elements_of(buffers[0], chunk)
            self._source.pack(pieces, elements)
        pending = self._communicator.send(elements, peer=peer, round=round_)
        return InFlight(
            chunk=chunk, pieces=pieces, pending=pending, buffers=buffers, elements=(elements,)
        )

    def _start_loan(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Lend the parameters themselves; cast elements of another type first."""
        buffers: tuple[torch.Tensor, ...] = ()
        elements: tuple[torch.Tensor, ...] = ()
        if self._source.all_of(self._dtype):
            views = [self._source.strip(piece).view() for piece in pieces]
        else:
            buffers, elements = self._take_buffers(chunk)
            for part, cast in zip(chunk.cut(self._chunk_elements), elements, strict=True):
                self._source.pack(part.pieces(), cast)
            self._source.synchronize()
            views = [cast.view(1, -1) for cast in elements]
        pending = self._communicator.lend(views, peer=chunk.peer, round=chunk.round)
        return InFlight(
            chunk=chunk, pieces=pieces, pending=pending, buffers=buffers, elements=elements
        )

    def _start_receive(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Receive into the parameter, or to be unpacked from where it lies then."""
        peer, round_ = chunk.peer, chunk.round
        memory = self._communicator.memory(peer)
        buffers: tuple[torch.Tensor, ...] = ()
        elements: tuple[torch.Tensor, ...] = ()
        if memory is Memory.OPEN:
            if not self._destination.all_of(self._dtype):
                buffers, elements = self._take_buffers(chunk)
            borrowed = self._communicator.borrow(self._size(chunk), peer=peer, round=round_)
            return InFlight(
                chunk=chunk,
                pieces=pieces,
                pending=borrowed,
                buffers=buffers,
                elements=elements,
                borrowed=borrowed,
            )
        if memory is Memory.LENT and self._lends:
            views = [self._destination.strip(piece).view() for piece in pieces]
        else:
            direct = self._destination.direct(pieces, self._dtype, self._communicator.device)
            if direct is None or memory is Memory.LENT:
                buffers, elements = self._take_buffers(chunk)
            else:
                elements = (direct,)
            views = [element.view(1, -1) for element in elements]
        if memory is Memory.LENT:
            pending = self._communicator.lend(views, peer=peer, round=round_)
        else:
            pending = self._communicator.receive(elements[0], peer=peer, round=round_)
        return InFlight(
            chunk=chunk, pieces=pieces, pending=pending, buffers=buffers, elements=elements
        )

    def _write(self, done: InFlight, borrowed: Borrowed) -> None:
        """Copy a chunk into the memory that its receiver lent."""
        target = [_strip_of(region, self._dtype) for region in borrowed.message]
        if not done.elements:
            copy_matched(target, map(self._source.strip, done.pieces))
        for part, moved in self._parts(done.chunk, done.elements):
            if moved is not None:
                self._source.pack(part.pieces(), moved)
            self._ledger.sent(part, moved)
        if done.elements:
            copy_matched(target, map(_run, done.elements))
        borrowed.release()

    def _put_in_place(self, done: InFlight) -> None:
        """Copy to where the pieces lie, if need be, and enter into the ledger."""
        if done.borrowed is not None:
            source = [_strip_of(region, self._dtype) for region in done.borrowed.message]
            if done.elements:
                copy_matched(map(_run, done.elements), source)
            else:
                copy_matched(map(self._destination.strip, done.pieces), source)
        for part, moved in self._parts(done.chunk, done.elements):
            if moved is not None and done.buffers:
                self._destination.unpack(part.pieces(), moved)
            self._ledger.received(part, moved)
        if done.borrowed is not None:
            done.borrowed.release()

    def _parts(
        self, chunk: Chunk, elements: tuple[torch.Tensor, ...]
    ) -> Iterator[tuple[Chunk, torch.Tensor | None]]:
        """A chunk with its elements as they move; None where it moved as the parameters are."""
        if not elements:
            yield chunk, None
        else:
            yield from zip(chunk.cut(self._chunk_elements), elements, strict=True)

    def _take_buffers(self, chunk: Chunk) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Staging buffers for a chunk, and its elements in them."""
        parts = list(chunk.cut(self._chunk_elements))
        buffers = tuple(self._staging.take() for _ in parts)
        return buffers, tuple(map(self._elements_of, buffers, parts))

    def _size(self, chunk: Chunk) -> int:
        return chunk.num_elements * self._dtype.itemsize

    def _elements_of(self, buffer: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        return buffer.view(self._dtype)[: chunk.num_elements]


def _strip_of(region: Region, dtype: torch.dtype) -> Strip:
    """The elements of a region of memory."""
    size = dtype.itemsize
    return Strip(
        region.memory.view(dtype),
        region.start // size,
        region.rows,
        region.row_bytes // size,
        region.stride_bytes // size,
    )


def _run(elements: torch.Tensor) -> Strip:
    return Strip(elements, 0, 1, len(elements), len(elements))
