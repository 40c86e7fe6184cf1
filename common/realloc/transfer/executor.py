"""Executes one endpoint's transfer program: pack → send / receive → unpack.

Every endpoint walks its chunks in one order that all share: round, number of the chunk
within its stream, sender, receiver. It starts them in this order and, once enough are in
flight, waits for the oldest first. So the first chunk (in that order) that is not through
has been started by both of its sides, since both only ever wait for earlier ones: no
deadlock, whatever the programs are. While the oldest is on its way, later chunks are packed
and blocks that stay in the process are copied. A chunk's digest is summed as it passes, while
the cache has it.

A chunk that is one run of memory, in the element type that moves, is sent and received in
place; only others pass through staging.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import Int64, TransferProgram
from realloc.transfer.agreement import agree_on_cuts
from realloc.transfer.arrivals import Arrival
from realloc.transfer.chunks import Chunk, LocalCopy, ProgramChunks
from realloc.transfer.communicator import (
    Borrowed,
    Communicator,
    Direction,
    Memory,
    Pending,
    Region,
)
from realloc.transfer.cuts import LEAST_RUN_BYTES
from realloc.transfer.ledger import Ledger
from realloc.transfer.matching import Strip, copy_matched
from realloc.transfer.parameters import DTYPES, Parameters
from realloc.transfer.staging import StagingBuffers
from realloc.transfer.streams import Piece, Stream

MAX_IN_FLIGHT = 16
"""Chunks in flight per endpoint: enough to cover latency, few enough to stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What one endpoint did."""

    sent_bytes: int
    """Bytes sent to other endpoints."""
    received_bytes: int
    """Bytes received from other endpoints."""
    local_bytes: int
    """Bytes copied within the process."""
    seconds: float
    """From the first chunk to the last, digests included."""
    sent_digests: Mapping[tuple[int, int], int]
    """Digest of what was sent, by (destination endpoint, canonical tensor): signed 64 bits."""
    received_digests: Mapping[int, int]
    """Digest of all that the destination holds now, by canonical tensor."""


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
    """The receive as such where it is read in the sender's memory."""


def execute(
    program: TransferProgram,
    communicator: Communicator,
    source: Mapping[str, torch.Tensor],
    destination: Mapping[str, torch.Tensor],
    *,
    staging: StagingBuffers,
    dtype: str,
    timeout_seconds: float,
    digests: bool = True,
    arrived: Callable[[Arrival], None] | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> TransferReport:
    """Do one endpoint's part of a reallocation; its peers do theirs at the same time.

    The source is only read. After a failure the destination is half written and the
    communicator as well as the staging buffers must not be used again.

    Args:
        program: what to send and receive.
        communicator: connects the endpoints that the program names by index.
        source: local parameters by name, contiguous; at least those that the program reads.
        destination: parameters to write; apart in memory from `source`.
        staging: chunks that cannot move in place go through these. All endpoints use the same
            `chunk_bytes`.
        dtype: element type on the way, ``float32`` or ``bfloat16``; other types are cast.
        timeout_seconds: deadline of the whole.
        digests: whether to sum digests; without, the report has none.
        arrived: called once for each canonical tensor of which this endpoint receives
            something, as soon as it has all of it and its digest is summed. Layers come in
            order, as far as they take the same way. It runs on the caller's thread between two
            chunks, so what it does delays the transfer; what it raises ends it.

    Raises:
        InvalidInput: parameters that do not fit the program, by name; nothing was moved.
        Unavailable: a peer is gone or late; the message names peer, round and parameters.
    """
    if dtype not in DTYPES:
        raise InvalidInput.at("dtype", f"{dtype!r} is none of {', '.join(DTYPES)}")
    execution = Execution(
        program=program,
        communicator=communicator,
        source=source_parameters(program, source, destination),
        destination=destination_parameters(program, destination),
        staging=staging,
        dtype=DTYPES[dtype],
        deadline=time.monotonic() + timeout_seconds,
        digests=digests,
        arrived=arrived,
        max_in_flight=max_in_flight,
    )
    with torch.no_grad():
        return execution.run()


def source_parameters(
    program: TransferProgram,
    source: Mapping[str, torch.Tensor],
    destination: Mapping[str, torch.Tensor],
) -> Parameters:
    """What sends read: source parameters, then destination ones that are passed on."""
    tensors = [source.get(name) for name in program.source_tensors]
    tensors += [destination.get(name) for name in program.destination_tensors]
    names = program.source_tensors + program.destination_tensors
    return Parameters(names, tensors, program.sends.blocks)


def destination_parameters(
    program: TransferProgram, destination: Mapping[str, torch.Tensor]
) -> Parameters:
    """What receives write."""
    names = program.destination_tensors
    return Parameters(names, [destination.get(name) for name in names], program.receives.blocks)


class Execution:
    """The state of one run of a program."""

    def __init__(
        self,
        *,
        program: TransferProgram,
        communicator: Communicator,
        source: Parameters,
        destination: Parameters,
        staging: StagingBuffers,
        dtype: torch.dtype,
        deadline: float,
        digests: bool,
        arrived: Callable[[Arrival], None] | None,
        max_in_flight: int,
    ) -> None:
        self._program = program
        self._communicator = communicator
        self._source = source
        self._destination = destination
        self._staging = staging
        self._dtype = dtype
        self._deadline = deadline
        # One buffer is left for a chunk that is copied within the process.
        self._window = max(
            1, min(max_in_flight, communicator.max_operations, staging.max_buffers - 1)
        )
        self._in_flight: deque[InFlight] = deque()
        self._plain = source.all_of(dtype) and destination.all_of(dtype)
        in_place_bytes = staging.chunk_bytes  # more would leave the cache before its digest
        if communicator.device.type == "cuda":
            in_place_bytes = staging.chunk_bytes * max(1, staging.max_buffers // 2)
        self._chunks = ProgramChunks(
            program,
            staging.chunk_bytes // dtype.itemsize,
            in_place_bytes // dtype.itemsize,
            communicator,
        )
        if not self._chunks.local_matches():
            raise InvalidInput.at(
                "program",
                f"endpoint {program.endpoint} does not receive from itself what it sends itself",
            )
        self._ledger = Ledger(
            program=program,
            source=source,
            destination=destination,
            dtype=dtype,
            digests=digests,
            arrived=arrived,
        )

    def run(self) -> TransferReport:
        """Move everything; see `execute`."""
        began = time.monotonic()
        self._source.synchronize()  # peers may read it by themselves
        self._cut()
        for batch in self._chunks.batches(self._batch_size()):
            self._make_ready(batch.chunks)
            with self._communicator.group():
                started = [self._start(chunk) for chunk in batch.chunks]
            for item in started:
                if item.chunk.direction is Direction.SEND:
                    for part in self._parts(item.chunk, item.elements):
                        self._ledger.sent(*part)
            for copy in batch.copies:
                self._copy(copy)
        while self._in_flight:
            self._finish_oldest()
        self._communicator.settle()
        self._source.synchronize()
        self._destination.synchronize()
        return self._report(time.monotonic() - began)

    def _cut(self) -> None:
        """Cut all streams, as their other sides do."""
        try:
            agree_on_cuts(self._chunks, self._runs, self._communicator, self._deadline)
        except Unavailable as error:
            names = self._program.source_tensors + self._destination.names
            raise self._named(error, names) from error

    def _runs(self, direction: Direction, stream: Stream) -> Int64:
        """Begin and end of the runs of a stream that may move as they are."""
        parameters = self._source if direction is Direction.SEND else self._destination
        movable = parameters.in_place(self._dtype, self._communicator.device)
        return stream.runs(max(1, LEAST_RUN_BYTES // self._dtype.itemsize), movable)

    def _batch_size(self) -> int:
        # Of chunks that are cast for open memory each may need half of the buffers.
        return min(self._communicator.batch_size, self._window) if self._plain else 1

    def _make_ready(self, batch: list[Chunk]) -> None:
        """Wait until a batch has room, and what it passes on has arrived."""
        needed = sum(self._buffers_for(chunk) for chunk in batch) + 1
        while self._in_flight and (
            len(self._in_flight) + len(batch) > self._window or self._staging.num_free < needed
        ):
            self._finish_oldest()
        if any(self._passes_on(chunk) for chunk in batch):
            # A program passes on what came at least two rounds before. What the process copied
            # itself in these is in place already.
            arrived = batch[0].round - 2
            while any(
                item.chunk.direction is Direction.RECEIVE and item.chunk.round <= arrived
                for item in self._in_flight
            ):
                self._finish_oldest()
            self._destination.synchronize()

    def _buffers_for(self, chunk: Chunk) -> int:
        """Most staging buffers that a chunk takes."""
        if self._plain and self._communicator.memory(chunk.peer) is Memory.OPEN:
            return 0
        return -(-chunk.num_elements // self._chunks.chunk_elements)

    def _passes_on(self, chunk: Chunk) -> bool:
        first_destination = len(self._program.source_tensors)
        return chunk.direction is Direction.SEND and bool(
            (chunk.stream.tensor >= first_destination).any()
        )

    def _start(self, chunk: Chunk) -> InFlight:
        """Hand a chunk to the communicator."""
        start = self._start_send if chunk.direction is Direction.SEND else self._start_receive
        try:
            self._in_flight.append(start(chunk, chunk.pieces()))
        except Unavailable as error:
            raise self._named(error, self._unmoved(chunk)) from error
        return self._in_flight[-1]

    def _start_send(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Send the parameters' own memory where it will do, else pack."""
        peer, round_ = chunk.peer, chunk.round
        memory = self._communicator.memory(peer)
        if memory is Memory.OPEN:
            return self._start_loan(chunk, pieces)
        buffers: tuple[torch.Tensor, ...] = ()
        elements = self._source.direct(pieces, self._dtype, self._communicator.device)
        if elements is None or memory is Memory.LENT:
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
            for part, cast in zip(chunk.cut(self._chunks.chunk_elements), elements, strict=True):
                self._source.pack(part.pieces(), cast)
            self._source.synchronize()
            views = [cast.view(1, -1) for cast in elements]
        pending = self._communicator.lend(views, peer=chunk.peer, round=chunk.round)
        return InFlight(
            chunk=chunk, pieces=pieces, pending=pending, buffers=buffers, elements=elements
        )

    def _start_receive(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Receive into the parameter, or to be unpacked from where the sender has it."""
        peer, round_ = chunk.peer, chunk.round
        buffers: tuple[torch.Tensor, ...] = ()
        memory = self._communicator.memory(peer)
        if memory is not Memory.ANY:
            casts: tuple[torch.Tensor, ...] = ()
            if memory is Memory.OPEN and not self._destination.all_of(self._dtype):
                buffers, casts = self._take_buffers(chunk)
            size_bytes = chunk.num_elements * self._dtype.itemsize
            borrowed = self._communicator.borrow(size_bytes, peer=peer, round=round_)
            return InFlight(
                chunk=chunk,
                pieces=pieces,
                pending=borrowed,
                buffers=buffers,
                elements=casts,
                borrowed=borrowed,
            )
        elements = self._destination.direct(pieces, self._dtype, self._communicator.device)
        if elements is None:
            buffers = (self._staging.take(),)
            elements = self._elements_of(buffers[0], chunk)
        pending = self._communicator.receive(elements, peer=peer, round=round_)
        return InFlight(
            chunk=chunk, pieces=pieces, pending=pending, buffers=buffers, elements=(elements,)
        )

    def _finish_oldest(self) -> None:
        """Wait for the oldest chunk; if it came, put it in place."""
        done = self._in_flight[0]
        try:
            done.pending.wait(max(self._deadline - time.monotonic(), 0.0))
            if done.chunk.direction is Direction.RECEIVE:
                self._put_in_place(done)
        except Unavailable as error:
            raise self._named(error, self._unmoved(done.chunk)) from error
        for buffer in done.buffers:
            self._staging.give_back(buffer)
        self._in_flight.popleft()

    def _put_in_place(self, done: InFlight) -> None:
        """Copy to where the pieces lie, if need be, and enter into the ledger."""
        elements = done.elements
        if done.borrowed is not None:
            source = [_strip_of(region, self._dtype) for region in done.borrowed.message]
            if self._destination.all_of(self._dtype):
                copy_matched(map(self._destination.strip, done.pieces), source)
            elif done.buffers:
                copy_matched([_run(cast) for cast in elements], source)
            else:
                (whole,) = source
                elements = (whole.view().view(-1),)
        for part, moved in self._parts(done.chunk, elements):
            if moved is not None and (done.buffers or done.borrowed is not None):
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
            yield from zip(chunk.cut(self._chunks.chunk_elements), elements, strict=True)

    def _take_buffers(self, chunk: Chunk) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Staging buffers for a chunk, and its elements in them."""
        parts = list(chunk.cut(self._chunks.chunk_elements))
        buffers = tuple(self._staging.take() for _ in parts)
        return buffers, tuple(map(self._elements_of, buffers, parts))

    def _elements_of(self, buffer: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        return buffer.view(self._dtype)[: chunk.num_elements]

    def _unmoved(self, chunk: Chunk) -> list[str]:
        """Names of the parameters that a chunk is of."""
        sending = chunk.direction is Direction.SEND
        parameters = self._source if sending else self._destination
        return [parameters.names[piece.tensor] for piece in chunk.pieces()]

    def _named(self, error: Unavailable, names: Sequence[str]) -> Unavailable:
        """The error with the names of the parameters that it left unmoved."""
        distinct = list(dict.fromkeys(names))
        more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
        return Unavailable(f"{error}; parameters {', '.join(distinct[:3])}{more}")

    def _copy(self, copy: LocalCopy) -> None:
        """Copy what stays in the process."""
        if self._plain:
            copy_matched(
                map(self._destination.strip, copy.received.pieces()),
                map(self._source.strip, copy.sent.pieces()),
            )
            self._ledger.sent(copy.sent, None)
            self._ledger.received(copy.received, None)
            return
        most = self._chunks.chunk_elements
        for sent, received in zip(copy.sent.cut(most), copy.received.cut(most), strict=True):
            buffer = self._staging.take()
            elements = self._elements_of(buffer, sent)
            self._source.pack(sent.pieces(), elements)
            self._ledger.sent(sent, elements)
            self._destination.unpack(received.pieces(), elements)
            self._ledger.received(received, elements)
            self._staging.give_back(buffer)

    def _report(self, seconds: float) -> TransferReport:
        itemsize = self._dtype.itemsize
        return TransferReport(
            sent_bytes=self._chunks.sent_elements * itemsize,
            received_bytes=self._chunks.received_elements * itemsize,
            local_bytes=self._chunks.local_elements * itemsize,
            seconds=seconds,
            sent_digests=self._ledger.sent_digests(),
            received_digests=self._ledger.received_digests(),
        )


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
