"""Executes one endpoint's transfer program: pack → send / receive → unpack.

Every endpoint walks its chunks in one order that all share: round, number of the chunk
within its stream, sender, receiver. It starts them in this order and, once enough are in
flight, waits for the oldest first. So the first chunk (in that order) that is not through
has been started by both of its sides, since both only ever wait for earlier ones: no
deadlock, whatever the programs are. While the oldest is on its way, later chunks are packed,
blocks that stay in the process are copied, and digests are summed.

A chunk that is one run of memory, in the element type that moves, is sent and received in
place; only others pass through staging.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferProgram
from realloc.transfer.agreement import agree_on_cuts
from realloc.transfer.chunks import Chunk, LocalCopy, ProgramChunks
from realloc.transfer.communicator import Borrowed, Communicator, Direction, Memory, Pending
from realloc.transfer.digest import ReceivedDigests, SentDigests
from realloc.transfer.parameters import DTYPES, Parameters
from realloc.transfer.staging import StagingBuffers
from realloc.transfer.streams import Piece

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
    """From the first chunk to the last; digests of what was sent are summed meanwhile."""
    digest_seconds: float
    """Digests of what arrived, summed afterwards."""
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
    buffer: torch.Tensor | None = None
    """Staging buffer that the chunk moves through, if it does."""
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
        self._chunks = ProgramChunks(program, staging.chunk_bytes // dtype.itemsize)
        if not self._chunks.local_matches():
            raise InvalidInput.at(
                "program",
                f"endpoint {program.endpoint} does not receive from itself what it sends itself",
            )
        self._local = self._chunks.local_copies()
        self._next_local = next(self._local, None)
        self._sent = SentDigests(program, source, dtype) if digests else None
        self._received = ReceivedDigests(program, destination, dtype) if digests else None

    def run(self) -> TransferReport:
        """Move everything; see `execute`."""
        began = time.monotonic()
        self._agree()
        aside = self._work_aside()
        for batch in self._chunks.batches(min(self._communicator.batch_size, self._window)):
            self._make_ready(batch)
            with self._communicator.group():
                for chunk in batch:
                    self._start(chunk)
            next(aside, None)
        for _ in aside:
            pass
        while self._in_flight:
            self._finish_oldest()
        moved = time.monotonic()
        self._finish_digests()
        return self._report(moved - began, time.monotonic() - moved)

    def _agree(self) -> None:
        """Cut all streams as their other sides do."""
        try:
            agree_on_cuts(self._chunks, self._communicator, self._dtype.itemsize, self._deadline)
        except Unavailable as error:
            raise self._named(
                error, self._program.source_tensors + self._destination.names
            ) from error

    def _make_ready(self, batch: list[Chunk]) -> None:
        """Wait until a batch has room, and what it passes on has arrived."""
        while self._in_flight and len(self._in_flight) + len(batch) > self._window:
            self._finish_oldest()
        if any(self._passes_on(chunk) for chunk in batch):
            # A program passes on what came at least two rounds before.
            arrived = batch[0].round - 2
            while any(
                item.chunk.direction is Direction.RECEIVE and item.chunk.round <= arrived
                for item in self._in_flight
            ):
                self._finish_oldest()
            while self._next_local is not None and self._next_local.round <= arrived:
                self._copy_next()

    def _passes_on(self, chunk: Chunk) -> bool:
        first_destination = len(self._program.source_tensors)
        return chunk.direction is Direction.SEND and bool(
            (chunk.stream.tensor >= first_destination).any()
        )

    def _start(self, chunk: Chunk) -> None:
        """Hand a chunk to the communicator."""
        pieces = chunk.pieces()
        try:
            if chunk.direction is Direction.SEND:
                self._in_flight.append(self._start_send(chunk, pieces))
            else:
                self._in_flight.append(self._start_receive(chunk, pieces))
        except Unavailable as error:
            raise self._named(error, self._unmoved(chunk)) from error

    def _start_send(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Send the parameter's own memory where it will do, else pack."""
        peer, round_ = chunk.peer, chunk.round
        buffer = None
        elements = self._source.direct(pieces, self._dtype, self._communicator.device)
        if elements is None or self._communicator.memory(peer) is Memory.LENT:
            buffer = self._staging.take()
            elements = self._elements_of(buffer, pieces)
            self._source.pack(pieces, elements)
        pending = self._communicator.send(elements, peer=peer, round=round_)
        return InFlight(chunk=chunk, pieces=pieces, pending=pending, buffer=buffer)

    def _start_receive(self, chunk: Chunk, pieces: tuple[Piece, ...]) -> InFlight:
        """Receive into the parameter, or to be unpacked from where the sender put it."""
        peer, round_ = chunk.peer, chunk.round
        if self._communicator.memory(peer) is Memory.LENT:
            size_bytes = _num_elements(pieces) * self._dtype.itemsize
            borrowed = self._communicator.borrow(size_bytes, peer=peer, round=round_)
            return InFlight(chunk=chunk, pieces=pieces, pending=borrowed, borrowed=borrowed)
        buffer = None
        elements = self._destination.direct(pieces, self._dtype, self._communicator.device)
        if elements is None:
            buffer = self._staging.take()
            elements = self._elements_of(buffer, pieces)
        pending = self._communicator.receive(elements, peer=peer, round=round_)
        return InFlight(chunk=chunk, pieces=pieces, pending=pending, buffer=buffer)

    def _finish_oldest(self) -> None:
        """Wait for the oldest chunk and unpack it."""
        done = self._in_flight[0]
        try:
            done.pending.wait(max(self._deadline - time.monotonic(), 0.0))
            self._unpack(done)
        except Unavailable as error:
            raise self._named(error, self._unmoved(done.chunk)) from error
        self._in_flight.popleft()

    def _unpack(self, done: InFlight) -> None:
        if done.borrowed is not None:
            assert done.borrowed.message is not None
            self._destination.unpack(done.pieces, done.borrowed.message.view(self._dtype))
            done.borrowed.release()
        elif done.buffer is not None:
            if done.chunk.direction is Direction.RECEIVE:
                elements = self._elements_of(done.buffer, done.pieces)
                self._destination.unpack(done.pieces, elements)
            self._staging.give_back(done.buffer)

    def _elements_of(self, buffer: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor:
        return buffer.view(self._dtype)[: _num_elements(pieces)]

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

    # Work within the process, done in small steps while chunks are on their way.

    def _work_aside(self) -> Iterator[None]:
        while self._next_local is not None:
            self._copy_next()
            yield
        if self._sent is not None:
            yield from self._sent.own_steps()

    def _copy_next(self) -> None:
        """The next chunk that stays in the process."""
        copy = self._next_local
        assert copy is not None
        self._next_local = next(self._local, None)
        self._copy(copy)

    def _copy(self, copy: LocalCopy) -> None:
        """Copy at once if the pieces are alike on both sides or either side is one run."""
        source, destination = self._source, self._destination
        # A copy between two other types would skip the rounding of the type on the way.
        rounded = source.all_of(self._dtype) or destination.all_of(self._dtype)
        if rounded and _shapes(copy.sent) == _shapes(copy.received):
            for here, there in zip(copy.sent, copy.received, strict=True):
                destination.view(there).copy_(source.view(here))
        elif (run := source.direct(copy.sent, self._dtype, source.device)) is not None:
            destination.unpack(copy.received, run)
        elif (
            run := destination.direct(copy.received, self._dtype, destination.device)
        ) is not None:
            source.pack(copy.sent, run)
        else:
            buffer = self._staging.take()
            elements = self._elements_of(buffer, copy.sent)
            source.pack(copy.sent, elements)
            destination.unpack(copy.received, elements)
            self._staging.give_back(buffer)

    def _finish_digests(self) -> None:
        if self._sent is not None:
            for _ in self._sent.relayed_steps():
                pass
        if self._received is not None:
            for _ in self._received.steps():
                pass

    def _report(self, seconds: float, digest_seconds: float) -> TransferReport:
        itemsize = self._dtype.itemsize
        return TransferReport(
            sent_bytes=self._chunks.sent_elements * itemsize,
            received_bytes=self._chunks.received_elements * itemsize,
            local_bytes=self._chunks.local_elements * itemsize,
            seconds=seconds,
            digest_seconds=digest_seconds,
            sent_digests=self._sent.values() if self._sent is not None else {},
            received_digests=self._received.values() if self._received is not None else {},
        )


def _num_elements(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.num_elements for piece in pieces)


def _shapes(pieces: tuple[Piece, ...]) -> list[tuple[int, int]]:
    return [(piece.rows, piece.cols) for piece in pieces]
