"""How much memory a transfer takes beside the parameters, as the kernel counts it."""

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from realloc.core.transfer import TransferProgram
from realloc.transfer.connecting import connect_cpu, device_place
from realloc.transfer.executor import execute
from realloc.transfer.parameters import DTYPES
from realloc.transfer.rendezvous import TransferStore, connect_store
from realloc.transfer.shared_memory import SharedMemorySegments
from realloc.transfer.staging import StagingBuffers
from tests.support.rank_processes import RankProcesses
from tests.support.transfer_programs import Holding, make_programs

HOST = "127.0.0.1"
SHAPE = (8192, 2048)  # 64 MiB
STAGING_BYTES = 8 << 20
SLACK_BYTES = 3 << 20
"""Pages that the allocator and the interpreter touch for themselves."""


def programs() -> list[TransferProgram]:
    """Half of the columns move: both sides are strided, every chunk is packed and unpacked."""
    half = SHAPE[1] // 2
    rows, cols = (0, SHAPE[0]), (0, SHAPE[1])
    source = Holding(endpoint=0, parameter="w", canonical=0, rows=rows, cols=cols, width=SHAPE[1])
    destination = Holding(
        endpoint=1, parameter="w", canonical=0, rows=(0, SHAPE[0]), cols=(0, half), width=SHAPE[1]
    )  # fmt: skip
    return make_programs([SHAPE], [source], [destination], 2)


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def peak_growth(
    store_port: int, program: TransferProgram, device: int | None, moved: str
) -> tuple[int, bool]:
    """Bytes by which this process's peak exceeds what it held before the transfer."""
    communicator = connect_cpu(
        store=connect_store(HOST, store_port, 20.0),
        group_id=f"{device} {moved}",
        endpoint=program.endpoint,
        num_endpoints=2,
        host=HOST,
        place="" if device is None else device_place(device),
        timeout_seconds=20.0,
        segments=SharedMemorySegments(),
    )
    dtype = DTYPES["float32" if program.endpoint == 0 else moved]
    parameters = {"w": torch.full(SHAPE, 1.0 + program.endpoint, dtype=dtype)}
    source, destination = (parameters, {}) if program.endpoint == 0 else ({}, parameters)
    growth = 0
    for _ in range(2):  # the first time compiles the digest and opens the connection
        staging = StagingBuffers(
            communicator.allocate, staging_bytes=STAGING_BYTES, chunk_bytes=1 << 20
        )
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        execute(
            program, communicator, source, destination,
            staging=staging, dtype=moved, timeout_seconds=60.0,
        )  # fmt: skip
        growth = memory("VmHWM") - before
        del staging
    communicator.close()
    right = bool((parameters["w"][:, : SHAPE[1] // 2] == 1.0).all())
    return growth, right


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    processes = RankProcesses(2)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def store() -> Iterator[TransferStore]:
    opened = TransferStore(HOST)
    yield opened
    opened.close()


@pytest.mark.parametrize("moved", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", [None, 0], ids=["gloo", "shared_memory"])
def test_peak_memory_is_the_staging_buffers_and_no_more(
    ranks: RankProcesses, store: TransferStore, device: int | None, moved: str
) -> None:
    """Eight million elements, digests included, move through 8 MiB of buffers on either side, as
    they are or cast on the way."""
    (sender, kept), (receiver, arrived) = ranks.run(
        peak_growth,
        [(store.port, program, device, moved) for program in programs()],
        timeout_seconds=120.0,
    )
    assert kept
    assert arrived
    # The kernel counts buffers that the receiver lends in the sender, too, which writes there.
    lent = 0 if device is None else receiver
    for growth in (sender - lent, receiver):
        assert growth <= STAGING_BYTES + SLACK_BYTES, f"{growth / 2**20:.1f} MiB"
