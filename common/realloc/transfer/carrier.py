"""Takes chunks out of parameters and puts them in, by the way that leads to each peer.

A chunk that is one run of memory, in the element type that moves, is sent and received in
place; memory that the peer can read is lent as it is. Only other chunks pass through staging.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
from realloc.transfer.streams import Piece
from realloc.transfer.summing import Summed


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A chunk under way, and what it takes up."""

    chunk: Chunk
    pending: Pending
    buffers: tuple[torch.Tensor, ...] = ()
    """Staging buffers that the chunk moves through, if it does."""
    elements: tuple[torch.Tensor, ...] = ()
    """The chunk as it moves, in parts of a buffer each; empty where it is lent as it is."""
    borrowed: Borrowed | None = None
    """The operation as such where it is done in the peer's memory."""
    entered: bool = False
    """Whether the ledger knows of it since it was packed."""


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
        sending = chunk.direction is Direction.SEND
        memory = self._communicator.memory(chunk.peer)
        if memory is Memory.ANY:
            start = self._start_send if sending else self._start_receive
        else:
            lends = sending if memory is Memory.OPEN else not sending
            start = self._start_loan if lends else self._start_borrowing
        return start(chunk)

    def started(self, item: InFlight) -> None:
        """Enter what was sent into the ledger."""
        known = item.entered or item.borrowed is not None
        if item.chunk.direction is Direction.RECEIVE or known:
            return
        if item.buffers:
            for part, moved in self._parts(item):
                self._ledger.sent(part, moved)
        else:
            self._ledger.sent(item.chunk, None)

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
            source = [self._source.strip(piece) for piece in copy.sent.pieces()]
            self._ledger.copy_in(copy.received, source, Summed.TARGET)
            self._ledger.sent(copy.sent, None)
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

    def _start_send(self, chunk: Chunk) -> InFlight:
        """Send the parameters' own memory where it will do, else pack."""
        pieces = chunk.pieces()
        buffers: tuple[torch.Tensor, ...] = ()
        entered = False
        elements = self._source.direct(pieces, self._dtype, self._communicator.device)
        if elements is None:
            buffers, (elements,) = self._take_buffers(chunk)
            entered = self._pack(chunk, pieces, elements)
        pending = self._communicator.send(elements, peer=chunk.peer, round=chunk.round)
        return InFlight(
            chunk=chunk,
            pending=pending,
            buffers=buffers,
            elements=(elements,),
            entered=entered,
        )

    def _pack(self, chunk: Chunk, pieces: tuple[Piece, ...], elements: torch.Tensor) -> bool:
        """Copy a chunk to where it moves from; whether the ledger knows of it with that."""
        if self._source.all_of(self._dtype):
            self._ledger.copy_out(chunk, [_run(elements)])
            return True
        self._source.pack(pieces, elements)
        return False

    def _start_receive(self, chunk: Chunk) -> InFlight:
        """Receive into the parameter, or into a buffer to be unpacked."""
        buffers: tuple[torch.Tensor, ...] = ()
        elements = self._destination.direct(chunk.pieces(), self._dtype, self._communicator.device)
        if elements is None:
            buffers, (elements,) = self._take_buffers(chunk)
        pending = self._communicator.receive(elements, peer=chunk.peer, round=chunk.round)
        return InFlight(chunk=chunk, pending=pending, buffers=buffers, elements=(elements,))

    def _start_loan(self, chunk: Chunk) -> InFlight:
        """Lend the parameters themselves, to be read or written; staging where they will not do."""
        sending = chunk.direction is Direction.SEND
        own = self._source if sending else self._destination
        buffers: tuple[torch.Tensor, ...] = ()
        elements: tuple[torch.Tensor, ...] = ()
        if own.all_of(self._dtype) if sending else self._lends:
            views = [own.strip(piece).view() for piece in chunk.pieces()]
        else:
            buffers, elements = self._take_buffers(chunk)
            if sending:
                for part, cast in zip(chunk.cut(self._chunk_elements), elements, strict=True):
                    own.pack(part.pieces(), cast)
                own.synchronize()
            views = [part.view(1, -1) for part in elements]
        pending = self._communicator.lend(views, peer=chunk.peer, round=chunk.round)
        return InFlight(chunk=chunk, pending=pending, buffers=buffers, elements=elements)

    def _start_borrowing(self, chunk: Chunk) -> InFlight:
        """Use the peer's memory, through staging where elements change their type."""
        own = self._source if chunk.direction is Direction.SEND else self._destination
        buffers: tuple[torch.Tensor, ...] = ()
        elements: tuple[torch.Tensor, ...] = ()
        if not own.all_of(self._dtype):
            buffers, elements = self._take_buffers(chunk)
        size_bytes = chunk.num_elements * self._dtype.itemsize
        borrowed = self._communicator.borrow(size_bytes, peer=chunk.peer, round=chunk.round)
        return InFlight(
            chunk=chunk,
            pending=borrowed,
            buffers=buffers,
            elements=elements,
            borrowed=borrowed,
        )

    def _write(self, done: InFlight, borrowed: Borrowed) -> None:
        """Copy a chunk into the memory that its receiver lent."""
        target = [_strip_of(region, self._dtype) for region in borrowed.message]
        if done.buffers:
            for part, cast in self._parts(done):
                self._source.pack(part.pieces(), cast)
                self._ledger.sent(part, cast)
            copy_matched(target, map(_run, done.elements))
        else:
            self._ledger.copy_out(done.chunk, target)
        borrowed.release()

    def _put_in_place(self, done: InFlight) -> None:
        """Copy to where the pieces lie, if need be, and enter into the ledger."""
        if done.borrowed is not None:
            source = [_strip_of(region, self._dtype) for region in done.borrowed.message]
            if done.buffers:
                copy_matched(map(_run, done.elements), source)
            else:
                self._ledger.copy_in(done.chunk, source, Summed.TARGET)
        elif not done.buffers:
            self._ledger.received(done.chunk, None)
        if done.buffers:
            for part, moved in self._parts(done):
                self._unpack(part, moved)
        if done.borrowed is not None:
            done.borrowed.release()

    def _unpack(self, part: Chunk, moved: torch.Tensor) -> None:
        if self._destination.all_of(self._dtype):
            self._ledger.copy_in(part, [_run(moved)], Summed.SOURCE)
        else:
            self._destination.unpack(part.pieces(), moved)
            self._ledger.received(part, moved)

    def _parts(self, item: InFlight) -> Iterator[tuple[Chunk, torch.Tensor]]:
        """A chunk in the parts in which staging buffers hold it."""
        yield from zip(item.chunk.cut(self._chunk_elements), item.elements, strict=True)

    def _take_buffers(self, chunk: Chunk) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Staging buffers for a chunk, and its elements in them."""
        parts = list(chunk.cut(self._chunk_elements))
        buffers = tuple(self._staging.take() for _ in parts)
        return buffers, tuple(map(self._elements_of, buffers, parts))

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
