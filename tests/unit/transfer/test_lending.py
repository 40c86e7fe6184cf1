"""Memory that is used where its owner keeps it: what CUDA IPC and shared memory do, with a toy
device."""

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from unittest import mock

import pytest
import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferProgram
from realloc.transfer.arrivals import Arrival
from realloc.transfer.communicator import Memory
from realloc.transfer.executor import TransferReport, execute
from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import Link
from realloc.transfer.parameters import DTYPES
from realloc.transfer.staging import StagingBuffers
from tests.support.transfer_programs import Holding, make_programs

SHAPES = [(16, 24), (40, 8), (1, 50)]


class ToyFence:
    """Is passed only once somebody waited for it, as on a device that is slow."""

    def __init__(self, device: "ToySegments") -> None:
        self._device = device
        self._number = device.fences = device.fences + 1

    def passed(self) -> bool:
        return self._device.finished >= self._number

    def wait(self) -> None:
        self._device.finished = max(self._device.finished, self._number)


class ToySegments:
    """Segments of threads, which can open anything of each other by its number."""

    known: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(self, memory: Memory = Memory.OPEN) -> None:
        self.memory = memory
        self.fences = 0
        self.finished = 0
        self.exported: list[int] = []

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def lends(self, memory: torch.Tensor) -> bool:
        return True

    def export(self, segment: torch.Tensor) -> tuple[bytes, int | None]:
        storage = segment.untyped_storage()
        self.exported.append(storage.data_ptr())
        self.known[str(storage.data_ptr())] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return str(storage.data_ptr()).encode(), None

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        return self.known[description.decode()]

    def fence(self) -> ToyFence:
        return ToyFence(self)


def connected(
    memory: Memory = Memory.OPEN, device: str = "cpu"
) -> tuple[list[LendingCommunicator], list[ToySegments]]:
    """Two endpoints of one process."""
    segments = [ToySegments(memory), ToySegments(memory)]
    links = [Link(end) for end in socket.socketpair()]
    return [
        LendingCommunicator(
            endpoint=endpoint,
            num_endpoints=2,
            links={1 - endpoint: links[endpoint]},
            segments=segments[endpoint],
            device=torch.device(device),
        )
        for endpoint in range(2)
    ], segments


def holdings(endpoint: int, by_rows: bool) -> list[Holding]:
    """Every tensor whole, in two parameters by halves of its rows or columns."""
    found = []
    for canonical, (rows, cols) in enumerate(SHAPES):
        for half in range(2):
            extent = rows if by_rows else cols
            span = (extent * half // 2, extent * (half + 1) // 2)
            if span[0] < span[1]:
                found.append(
                    Holding(
                        endpoint=endpoint,
                        parameter=f"t{canonical}.{half}",
                        canonical=canonical,
                        rows=span if by_rows else (0, rows),
                        cols=(0, cols) if by_rows else span,
                        width=cols if by_rows else span[1] - span[0],
                    )
                )
    return found


def parameters(of: list[Holding], canonical: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        h.parameter: canonical[h.canonical][slice(*h.rows), slice(*h.cols)].contiguous() for h in of
    }


def executed(
    programs: Sequence[TransferProgram],
    communicators: Sequence[LendingCommunicator],
    staging: Sequence[StagingBuffers],
    source: dict[str, torch.Tensor],
    destination: dict[str, torch.Tensor],
    moved: str,
    arrived: Callable[[Arrival], None] | None = None,
    uncast: Sequence[int] = (),
) -> tuple[TransferReport, TransferReport]:
    """Both ends' reports, each from a thread of its own."""

    def run(endpoint: int) -> TransferReport:
        return execute(
            programs[endpoint],
            communicators[endpoint],
            {} if endpoint else source,
            destination if endpoint else {},
            staging=staging[endpoint],
            dtype=moved,
            timeout_seconds=20.0,
            arrived=arrived,
            uncast=uncast,
        )

    with ThreadPoolExecutor(2) as threads:
        sent, received = threads.map(run, range(2), timeout=30)
    return sent, received


@pytest.mark.parametrize("memory", [Memory.OPEN, Memory.LENT])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("moved", ["float32", "bfloat16"])
def test_parameters_are_used_in_place_and_given_back(
    moved: str, stored: str, memory: Memory
) -> None:
    """Read by the receiver (OPEN) or written by the sender (LENT), twice over one connection:
    bit-identical, digests agree, nothing waits for a device that nobody waits for, and memory
    is opened once. Only what is cast is copied first."""
    canonical = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    have, want = holdings(0, by_rows=True), holdings(1, by_rows=False)
    programs = make_programs(SHAPES, have, want, 2, 1)
    source = parameters(have, canonical)
    communicators, segments = connected(memory)
    shadows = {
        name: torch.empty_like(tensor, dtype=DTYPES[stored])
        for name, tensor in parameters(want, canonical).items()
    }
    staging = [
        StagingBuffers(c.allocate, staging_bytes=512, chunk_bytes=128) for c in communicators
    ]
    for _ in range(2):
        destination = {name: shadow.fill_(torch.nan) for name, shadow in shadows.items()}
        complete: list[Arrival] = []
        sent, received = executed(
            programs, communicators, staging, source, destination, moved, complete.append
        )
        for name, tensor in parameters(want, canonical).items():
            assert torch.equal(destination[name], tensor.to(DTYPES[moved]).to(DTYPES[stored]))
        assert {c: d for (_, c), d in sent.sent_digests.items()} == received.received_digests
        assert {a.canonical: a.digest for a in complete} == received.received_digests
    lender, lent, cast = (
        (segments[0], source, moved != "float32")
        if memory is Memory.OPEN
        else (segments[1], shadows, moved != stored)
    )
    allocations = {tensor.untyped_storage().data_ptr() for tensor in lent.values()}
    assert allocations & set(lender.exported) == (set() if cast else allocations)
    assert len(lender.exported) == len(set(lender.exported))
    for communicator in communicators:
        communicator.close()


@pytest.mark.parametrize(("uncast", "offers"), [((0, 1), 1), ((0,), 4), ((), 4)])
def test_open_memory_is_read_whole_where_neither_side_casts(
    uncast: tuple[int, ...], offers: int
) -> None:
    """One message then, however little staging there is; else in parts that staging could hold."""
    canonical = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    have, want = holdings(0, by_rows=True), holdings(1, by_rows=False)
    programs = make_programs(SHAPES, have, want, 2, 1)
    communicators, _ = connected()
    staging = [
        StagingBuffers(c.allocate, staging_bytes=3072, chunk_bytes=768) for c in communicators
    ]
    expected = parameters(want, canonical)
    destination = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    with mock.patch.object(communicators[0], "lend", wraps=communicators[0].lend) as lend:
        executed(
            programs, communicators, staging, parameters(have, canonical), destination, "float32",
            uncast=uncast,
        )  # fmt: skip
    assert lend.call_count == offers
    for name, tensor in expected.items():
        assert torch.equal(destination[name], tensor)


def test_ends_with_staging_of_different_sizes_cut_open_memory_alike() -> None:
    """Where elements are cast on a GPU (here a toy one), each side needs buffers of its own; how
    many it may have is its own matter."""
    canonical = [torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    have, want = holdings(0, by_rows=True), holdings(1, by_rows=False)
    communicators, _ = connected(device="cuda")
    staging = [
        StagingBuffers(c.allocate, staging_bytes=chunks * 64, chunk_bytes=64)
        for c, chunks in zip(communicators, (8, 40), strict=True)
    ]
    expected = parameters(want, canonical)
    destination = {
        name: torch.full_like(tensor, torch.nan, dtype=torch.bfloat16)
        for name, tensor in expected.items()
    }
    programs = make_programs(SHAPES, have, want, 2, 1)
    executed(programs, communicators, staging, parameters(have, canonical), destination, "bfloat16")
    for name, tensor in expected.items():
        assert torch.equal(destination[name], tensor.to(torch.bfloat16))


def test_an_endpoint_that_casts_is_not_taken_for_one_that_does_not() -> None:
    """It refuses before anything moves: its staging would not do."""
    have, want = holdings(0, by_rows=True), holdings(1, by_rows=False)
    canonical = [torch.ones(shape) for shape in SHAPES]
    (communicator, _), _ = connected()
    staging = StagingBuffers(communicator.allocate, staging_bytes=512, chunk_bytes=128)
    with pytest.raises(InvalidInput, match="names endpoint 0, which casts"):
        execute(
            make_programs(SHAPES, have, want, 2, 1)[0],
            communicator,
            parameters(have, canonical),
            {},
            staging=staging,
            dtype="bfloat16",
            timeout_seconds=20.0,
            uncast=(0, 1),
        )


def test_memory_that_was_freed_is_not_taken_for_what_came_after_it() -> None:
    """An allocation at the place of one that is gone is exported anew."""
    (sender, receiver), segments = connected()
    place = bytearray(1000)
    for value in range(3):
        buffer = torch.frombuffer(place, dtype=torch.uint8).fill_(value)
        pending = sender.lend([buffer.view(10, 100)], peer=1, round=0)
        borrowed = receiver.borrow(1000, peer=0, round=0)
        borrowed.wait(5.0)
        (region,) = borrowed.message
        assert bool((region.contiguous() == value).all())
        borrowed.release()
        receiver.settle()
        pending.wait(5.0)
        ToySegments.known.clear()
        receiver._opened.clear()  # they hold the storage, which other processes cannot
        del buffer, borrowed, pending, region
    assert len(segments[0].exported) == 3


def test_memory_is_given_back_only_after_the_device_has_read_it() -> None:
    """A release alone does not let the sender write there again."""
    (sender, receiver), _ = connected()
    pending = sender.send(torch.ones(10, dtype=torch.uint8), peer=1, round=0)
    borrowed = receiver.borrow(10, peer=0, round=0)
    borrowed.wait(5.0)
    borrowed.release()
    with pytest.raises(Unavailable, match="timed out"):
        pending.wait(0.05)
    receiver.settle()
    pending.wait(5.0)


def test_an_offer_longer_than_the_socket_takes_goes_out_while_its_sender_waits() -> None:
    """30,000 pieces, some 1.4 MB of description, all in order."""
    (sender, receiver), _ = connected()
    kept = torch.arange(30_000 * 4, dtype=torch.int32).view(30_000, 4)
    starts: list[int] = []

    def receive() -> None:
        borrowed = receiver.borrow(kept.nbytes, peer=0, round=0)
        borrowed.wait(20.0)
        starts.extend(region.start for region in borrowed.message)
        borrowed.release()
        receiver.settle()

    thread = threading.Thread(target=receive)
    pending = sender.lend(list(kept.split(1)), peer=1, round=0)
    thread.start()
    pending.wait(20.0)
    thread.join(20)
    assert starts == list(range(0, kept.nbytes, 16))


def test_closing_gives_back_what_the_device_has_read() -> None:
    """A sender does not lose its wait to a receiver that is through and leaves."""
    (sender, receiver), _ = connected()
    pending = sender.send(torch.ones(10, dtype=torch.uint8), peer=1, round=0)
    borrowed = receiver.borrow(10, peer=0, round=0)
    borrowed.wait(5.0)
    borrowed.release()
    receiver.close()
    pending.wait(5.0)
    with pytest.raises(Unavailable):
        sender.receive(torch.zeros(1, dtype=torch.uint8), peer=1, round=1).wait(5.0)
