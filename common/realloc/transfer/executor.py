"""Executes one endpoint's transfer program: pack → send / receive → unpack.

Every endpoint walks its chunks in one order that all share: round, number of the chunk
within its stream, sender, receiver. It starts them in this order and, once enough are in
flight, waits for the oldest first. So the first chunk (in that order) that is not through
has been started by both of its sides, since both only ever wait for earlier ones: no
deadlock, whatever the programs are. While the oldest is on its way, later chunks are packed
and blocks that stay in the process are copied. A chunk's digest is summed as it passes, while
the cache has it. How a chunk gets out of parameters and into them is the `carrier`'s matter.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferProgram
from realloc.transfer.arrivals import Arrival
from realloc.transfer.carrier import Carrier, InFlight
from realloc.transfer.chunks import Chunk, ProgramChunks
from realloc.transfer.communicator import Communicator, Direction
from realloc.transfer.ledger import Ledger
from realloc.transfer.parameters import DTYPES, Parameters
from realloc.transfer.staging import CAST_CHUNKS, StagingBuffers

MAX_IN_FLIGHT = 64
"""Chunks in flight per endpoint. Only those that move through staging take memory, and they wait
for a buffer; with many the network is never idle while this endpoint packs or sums."""


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
    uncast: Collection[int] = (),
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
        uncast: endpoints whose parameters all have the type that moves, the same for all
            endpoints. What two of them move in open memory is not cut.

    Raises:
        InvalidInput: parameters that do not fit the program, by name, or that are cast here
            although `uncast` names this endpoint; nothing was moved.
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
        uncast=uncast,
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
        uncast: Collection[int],
        max_in_flight: int,
    ) -> None:
        self._program = program
        self._communicator = communicator
        self._source = source
        self._destination = destination
        self._staging = staging
        self._dtype = dtype
        self._deadline = deadline
        self._window = max(1, min(max_in_flight, communicator.max_operations))
        self._in_flight: deque[InFlight] = deque()
        self._relays = bool((program.sends.blocks.tensor >= len(program.source_tensors)).any())
        self._plain = source.all_of(dtype) and destination.all_of(dtype)
        if program.endpoint in uncast and not self._plain:
            raise InvalidInput.at("uncast", f"names endpoint {program.endpoint}, which casts")
        in_place_bytes = staging.chunk_bytes  # more would leave the cache before its digest
        if communicator.device.type == "cuda":
            in_place_bytes = staging.chunk_bytes * CAST_CHUNKS
        self._chunks = ProgramChunks(
            program,
            staging.chunk_bytes // dtype.itemsize,
            in_place_bytes // dtype.itemsize,
            communicator,
            uncast,
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
        self._carrier = Carrier(
            communicator=communicator,
            source=source,
            destination=destination,
            staging=staging,
            dtype=dtype,
            ledger=self._ledger,
        )

    def run(self) -> TransferReport:
        """Move everything; see `execute`."""
        began = time.monotonic()
        self._source.synchronize()  # peers may read it by themselves
        for batch in self._chunks.batches(self._batch_size()):
            self._make_ready(batch.chunks)
            with self._communicator.group():
                started = [self._start(chunk) for chunk in batch.chunks]
            for item in started:
                self._carrier.started(item)
            for copy in batch.copies:
                self._carrier.copy(copy)
        while self._in_flight:
            self._finish_oldest()
        self._communicator.settle()
        self._source.synchronize()
        self._destination.synchronize()
        return self._report(began)

    def _batch_size(self) -> int:
        # Of chunks that are cast for open memory each may need half of the buffers. One buffer is
        # left for a chunk that is copied within the process.
        most = min(self._communicator.batch_size, self._window, self._staging.max_buffers - 1)
        return most if self._plain else 1

    def _make_ready(self, batch: list[Chunk]) -> None:
        """Wait until a batch has room, and what it passes on has arrived."""
        needed = sum(self._carrier.buffers_for(chunk) for chunk in batch) + 1
        while self._in_flight and (
            len(self._in_flight) + len(batch) > self._window or self._staging.num_free < needed
        ):
            self._finish_oldest()
        if self._relays and any(self._passes_on(chunk) for chunk in batch):
            # A program passes on what came at least two rounds before. What the process copied
            # itself in these is in place already.
            arrived = batch[0].round - 2
            while any(
                item.chunk.direction is Direction.RECEIVE and item.chunk.round <= arrived
                for item in self._in_flight
            ):
                self._finish_oldest()
            self._destination.synchronize()

    def _passes_on(self, chunk: Chunk) -> bool:
        """Whether it may send what was received before."""
        received = len(self._program.source_tensors)
        return chunk.direction is Direction.SEND and max(chunk.stream.tensor) >= received

    def _start(self, chunk: Chunk) -> InFlight:
        try:
            self._in_flight.append(self._carrier.start(chunk))
        except Unavailable as error:
            raise self._named(error, self._unmoved(chunk)) from error
        return self._in_flight[-1]

    def _finish_oldest(self) -> None:
        """Wait for the oldest chunk; if it came, put it in place."""
        done = self._in_flight[0]
        try:
            done.pending.wait(max(self._deadline - time.monotonic(), 0.0))
            self._carrier.finish(done)
        except Unavailable as error:
            raise self._named(error, self._unmoved(done.chunk)) from error
        self._in_flight.popleft()

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

    def _report(self, began: float) -> TransferReport:
        itemsize = self._dtype.itemsize
        sent, received = self._ledger.sent_digests(), self._ledger.received_digests()
        return TransferReport(
            sent_bytes=self._chunks.sent_elements * itemsize,
            received_bytes=self._chunks.received_elements * itemsize,
            local_bytes=self._chunks.local_elements * itemsize,
            seconds=time.monotonic() - began,
            sent_digests=sent,
            received_digests=received,
        )
