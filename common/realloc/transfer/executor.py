"""Executes one endpoint's transfer program: pack → send / receive → unpack.

Every endpoint walks its chunks in one order that all share: round, number of the chunk
within its stream, sender, receiver. It starts them in this order and, once enough are in
flight, waits for the oldest first. So the first chunk (in that order) that is not through
has been started by both of its sides, since both only ever wait for earlier ones: no
deadlock, whatever the programs are. While the oldest is on its way, later chunks are packed,
blocks that stay in the process are copied, and digests are summed.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferProgram
from realloc.transfer.communicator import Communicator, Direction, Pending
from realloc.transfer.digest import DigestSum, received_digests, sent_keys
from realloc.transfer.parameters import DTYPES, Parameters
from realloc.transfer.staging import StagingBuffers
from realloc.transfer.streams import Piece, Stream, streams_of

MAX_IN_FLIGHT = 32
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
class Chunk:
    """One operation of the program."""

    stream: Stream
    number: int
    direction: Direction

    def order(self, endpoint: int) -> tuple[int, int, int, int]:
        """Its place in the order that all endpoints share."""
        pair = (endpoint, self.stream.peer)
        sender, receiver = pair if self.direction is Direction.SEND else pair[::-1]
        return self.stream.round, self.number, sender, receiver

    def pieces(self, chunk_elements: int) -> tuple[Piece, ...]:
        first = self.number * chunk_elements
        last = min(first + chunk_elements, self.stream.num_elements)
        return tuple(self.stream.pieces(first, last))


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A chunk under way, and what it takes up."""

    chunk: Chunk
    pieces: tuple[Piece, ...]
    pending: Pending
    buffer: torch.Tensor | None
    """Staging buffer; None where the chunk moves from or to the parameter itself."""
    elements: torch.Tensor
    """What moves, in the element type on the way."""


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
        source=Parameters(program.source_tensors, source, program.sends.blocks),
        destination=Parameters(program.destination_tensors, destination, program.receives.blocks),
        staging=staging,
        dtype=DTYPES[dtype],
        deadline=time.monotonic() + timeout_seconds,
        digests=digests,
        max_in_flight=max_in_flight,
    )
    with torch.no_grad():
        return execution.run()


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
        self._chunk_elements = staging.chunk_bytes // dtype.itemsize
        self._deadline = deadline
        # One buffer is left for the chunk that is copied within the process.
        self._window = max(
            1, min(max_in_flight, communicator.max_operations, staging.max_buffers - 1)
        )
        self._in_flight: deque[InFlight] = deque()
        self._sends = streams_of(program.sends)
        self._receives = streams_of(program.receives)
        self._sent_keys = sent_keys(program)
        self._sent = DigestSum(self._source, len(self._sent_keys.pairs), dtype) if digests else None

    def run(self) -> TransferReport:
        """Move everything; see `execute`."""
        began = time.monotonic()
        aside = self._work_aside()
        for chunk in self._remote_chunks():
            while len(self._in_flight) >= self._window:
                self._finish_oldest()
            self._start(chunk)
            next(aside, None)
        for _ in aside:
            pass
        while self._in_flight:
            self._finish_oldest()
        return self._report(began)

    def _remote_chunks(self) -> list[Chunk]:
        """Chunks from and to other endpoints, in the order that all endpoints share."""
        endpoint = self._program.endpoint
        chunks = [
            Chunk(stream=stream, number=number, direction=direction)
            for streams, direction in (
                (self._sends, Direction.SEND),
                (self._receives, Direction.RECEIVE),
            )
            for stream in streams
            if stream.peer != endpoint
            for number in range(stream.num_chunks(self._chunk_elements))
        ]
        return sorted(chunks, key=lambda chunk: chunk.order(endpoint))

    def _start(self, chunk: Chunk) -> None:
        """Pack where needed, and hand the chunk to the communicator."""
        pieces = chunk.pieces(self._chunk_elements)
        sending = chunk.direction is Direction.SEND
        parameters = self._source if sending else self._destination
        buffer = None
        elements = parameters.direct(pieces, self._dtype)
        if elements is None:
            buffer = self._staging.take()
            elements = self._elements_of(buffer, pieces)
            if sending:
                parameters.pack(pieces, elements)
        start = self._communicator.send if sending else self._communicator.receive
        try:
            pending = start(elements, peer=chunk.stream.peer, round=chunk.stream.round)
        except Unavailable as error:
            raise self._named(error, chunk, pieces) from error
        self._in_flight.append(
            InFlight(chunk=chunk, pieces=pieces, pending=pending, buffer=buffer, elements=elements)
        )

    def _finish_oldest(self) -> None:
        """Wait for the oldest chunk and unpack it."""
        done = self._in_flight[0]
        try:
            done.pending.wait(max(self._deadline - time.monotonic(), 0.0))
        except Unavailable as error:
            raise self._named(error, done.chunk, done.pieces) from error
        self._in_flight.popleft()
        if done.buffer is not None:
            if done.chunk.direction is Direction.RECEIVE:
                self._destination.unpack(done.pieces, done.elements)
            self._staging.give_back(done.buffer)

    def _elements_of(self, buffer: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor:
        count = sum(piece.num_elements for piece in pieces)
        return buffer.view(self._dtype)[:count]

    def _named(self, error: Unavailable, chunk: Chunk, pieces: tuple[Piece, ...]) -> Unavailable:
        """The error with the names of the parameters that it left unmoved."""
        sending = chunk.direction is Direction.SEND
        parameters = self._source if sending else self._destination
        names = list(dict.fromkeys(parameters.names[piece.tensor] for piece in pieces))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return Unavailable(f"{error}; parameters {', '.join(names[:3])}{more}")

    # Work within the process, done in small steps while chunks are on their way.

    def _work_aside(self) -> Iterator[None]:
        yield from self._copy_local()
        if self._sent is not None:
            for _ in self._sent.add(self._program.sends.blocks, self._sent_keys.of_block):
                yield

    def _copy_local(self) -> Iterator[None]:
        """Messages to oneself, chunk by chunk."""
        endpoint = self._program.endpoint
        sends = [stream for stream in self._sends if stream.peer == endpoint]
        receives = [stream for stream in self._receives if stream.peer == endpoint]
        if [stream.num_elements for stream in sends] != [
            stream.num_elements for stream in receives
        ]:
            raise InvalidInput.at(
                "program", f"endpoint {endpoint} sends itself other than it receives from itself"
            )
        for sent, received in zip(sends, receives, strict=True):
            for first in range(0, sent.num_elements, self._chunk_elements):
                last = min(first + self._chunk_elements, sent.num_elements)
                self._copy(tuple(sent.pieces(first, last)), tuple(received.pieces(first, last)))
                yield

    def _copy(self, sent: tuple[Piece, ...], received: tuple[Piece, ...]) -> None:
        """Copy a chunk at once if its pieces are alike or either side is one run."""
        source, destination = self._source, self._destination
        rounded = source.all_of(self._dtype) or destination.all_of(self._dtype)
        if rounded and _shapes(sent) == _shapes(received):
            for here, there in zip(sent, received, strict=True):
                destination.view(there).copy_(source.view(here))
        elif (run := source.direct(sent, self._dtype)) is not None:
            destination.unpack(received, run)
        elif (run := destination.direct(received, self._dtype)) is not None:
            source.pack(sent, run)
        else:
            buffer = self._staging.take()
            elements = self._elements_of(buffer, sent)
            source.pack(sent, elements)
            destination.unpack(received, elements)
            self._staging.give_back(buffer)

    def _report(self, began: float) -> TransferReport:
        sent_digests: dict[tuple[int, int], int] = {}
        received: dict[int, int] = {}
        if self._sent is not None:
            values = self._sent.values().tolist()
            sent_digests = dict(zip(self._sent_keys.pairs, values, strict=True))
            received = received_digests(self._program, self._destination, self._dtype)
        return TransferReport(
            sent_bytes=self._bytes(self._sends, local=False),
            received_bytes=self._bytes(self._receives, local=False),
            local_bytes=self._bytes(self._receives, local=True),
            sent_digests=sent_digests,
            received_digests=received,
            seconds=time.monotonic() - began,
        )

    def _bytes(self, streams: list[Stream], *, local: bool) -> int:
        elements = sum(
            stream.num_elements
            for stream in streams
            if (stream.peer == self._program.endpoint) is local
        )
        return elements * self._dtype.itemsize


def _shapes(pieces: tuple[Piece, ...]) -> list[tuple[int, int]]:
    return [(piece.rows, piece.cols) for piece in pieces]
