"""What the processes of `tools.bench.realloc` hold and run."""

import cProfile
import time
from dataclasses import dataclass

import torch

from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, TransferProgram, TransferSession
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.planner import plan_transfer
from realloc.transfer.communicator import Communicator
from realloc.transfer.digest import SentDigests
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport, source_parameters
from realloc.transfer.shadow import ShadowParameters

HOST = "127.0.0.1"
TIMEOUT = 120.0
RAW_BYTES = 16 << 20
"""Bytes of one raw operation; several sizes from 1 MiB to 160 MiB were alike."""
CUDA_COPY_BYTES = 2 << 30


@dataclass
class Shard:
    """One process: its end of the transfers, and its parameters by layout pair."""

    endpoint: TransferEndpoint
    program: TransferProgram | None = None
    source: dict[str, torch.Tensor] | None = None
    destination: dict[str, torch.Tensor] | None = None
    raw: torch.Tensor | None = None


SHARD: list[Shard] = []


def open_shard(name: str, device: int | None, on_gpu: bool = False) -> int:
    if SHARD:
        SHARD.pop().endpoint.close()
    cuda_device = torch.device("cuda", 0) if on_gpu else None
    SHARD.append(Shard(TransferEndpoint(HOST, name, device=device, cuda_device=cuda_device)))
    return SHARD[0].endpoint.store_port


def close_shard() -> None:
    SHARD.pop().endpoint.close()


def prepare(index: int, model: ModelArchitecture, source: Layout, destination: Layout) -> int:
    """Make this endpoint's program and parameters; the bytes that it receives."""
    names = [f"trainer-{d}" for d in source.devices] + [
        f"generation-{d}" for d in destination.devices
    ]
    num_source = len(source.devices)
    devices = [*range(num_source), *range(num_source, len(names))]
    endpoints = [
        Endpoint(name=name, device=device, node=0)
        for name, device in zip(names, devices, strict=True)
    ]
    plan = plan_transfer(
        model,
        source,
        destination,
        source_endpoints=endpoints[:num_source],
        destination_endpoints=endpoints[num_source:],
        dtype="float32",
    )
    program = plan.programs[index]
    layout, rank = (source, index) if index < num_source else (destination, index - num_source)
    shard = SHARD[0]
    parameters = {
        parameter.name: torch.randn(parameter.shape)
        for parameter in local_parameters(model, layout, rank).parameters
    }
    shard.program = program
    if index < num_source:
        shard.source, shard.destination = parameters, {}
    else:  # into shadow parameters, as in a generation service
        shadow = ShadowParameters(parameters, shard.endpoint.allocate)
        shard.source, shard.destination = {}, dict(shadow.stage(program))
    return program.receives.blocks.num_elements * 4


def prepare_on_gpu(
    index: int, model: ModelArchitecture, source: Layout, destination: Layout, num_processes: int
) -> int:
    """As `prepare`, in bfloat16 and all on one device; one process may have both roles."""
    shard = SHARD[0]
    shard.source = shard.destination = None  # frees the last pair's
    have = [Endpoint(name=f"{device}", device=device, node=0) for device in source.devices]
    first = num_processes - len(destination.devices)
    want = [
        Endpoint(name=f"{first + device}", device=device, node=0) for device in destination.devices
    ]
    plan = plan_transfer(
        model,
        source,
        destination,
        source_endpoints=have,
        destination_endpoints=want,
        dtype="bfloat16",
    )
    shard.program = plan.programs[index]
    shard.source, shard.destination = (
        {
            parameter.name: torch.ones(parameter.shape, dtype=torch.bfloat16, device="cuda:0")
            for number, endpoint in enumerate(side)
            if endpoint.name == f"{index}"
            for parameter in local_parameters(model, layout, number).parameters
        }
        for side, layout in ((have, source), (want, destination))
    )
    return shard.program.receives.blocks.num_elements * 2


def copy_on_gpu(size_bytes: int) -> float:
    """Seconds that the device takes to copy as many bytes within its memory."""
    shard = SHARD[0]
    if shard.raw is None:
        shard.raw = torch.ones(2, CUDA_COPY_BYTES, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    began = time.monotonic()
    for first in range(0, size_bytes, CUDA_COPY_BYTES):
        size = min(CUDA_COPY_BYTES, size_bytes - first)
        shard.raw[0, :size].copy_(shard.raw[1, :size])
    torch.cuda.synchronize()
    return time.monotonic() - began


def digest_on_gpu() -> tuple[int, float]:
    """Bytes that this process sends, and the seconds that their digests alone take."""
    shard = SHARD[0]
    assert shard.program is not None
    assert shard.source is not None
    torch.cuda.synchronize()
    began = time.monotonic()
    parameters = source_parameters(shard.program, shard.source, {})
    digests = SentDigests(shard.program, parameters, torch.bfloat16)
    for _ in digests.own_steps():
        pass
    digests.values()
    return shard.program.sends.blocks.num_elements * 2, time.monotonic() - began


def meet(communicator: Communicator) -> None:
    """All endpoints begin together: each tells each."""
    here, byte = communicator.endpoint, communicator.allocate(1)
    pending = []
    for sender in range(communicator.num_endpoints):
        for receiver in range(communicator.num_endpoints):
            if sender != receiver and here == sender:
                pending.append(communicator.send(byte, peer=receiver, round=0))
            elif sender != receiver and here == receiver:
                into = torch.zeros(1, dtype=torch.uint8, device=communicator.device)
                pending.append(communicator.receive(into, peer=sender, round=0))
    for operation in pending:
        operation.wait(TIMEOUT)


def reallocate(session: TransferSession, index: int, digests: bool) -> TransferReport:
    shard = SHARD[0]
    assert shard.program is not None
    assert shard.source is not None
    assert shard.destination is not None
    meet(shard.endpoint.connect(session, index).communicator)
    return shard.endpoint.run(
        session, shard.program, shard.source, shard.destination, digests=digests
    )


def profile(session: TransferSession, index: int, digests: bool) -> list[tuple[str, float]]:
    """Milliseconds of a reallocation, and in the functions that took longest by themselves."""
    profiler = cProfile.Profile()
    profiler.enable()
    report = reallocate(session, index, digests)
    profiler.disable()
    entries = sorted(profiler.getstats(), key=lambda entry: -entry.inlinetime)
    named = [
        (getattr(entry.code, "co_name", str(entry.code)).split(" of ")[0], 1e3 * entry.inlinetime)
        for entry in entries[:6]
    ]
    return [("all", 1e3 * report.seconds), *named]


def raw(session: TransferSession, index: int, size_bytes: int) -> float:
    """Half of the endpoints send, the others receive; seconds for size_bytes each."""
    shard = SHARD[0]
    communicator = shard.endpoint.connect(session, index).communicator
    if shard.raw is None or len(shard.raw) < size_bytes:
        shard.raw = torch.ones(size_bytes, dtype=torch.uint8)
    half = session.num_endpoints // 2
    peer = (index + half) % session.num_endpoints
    meet(communicator)
    began = time.monotonic()
    start = communicator.send if index < half else communicator.receive
    pending = [
        start(shard.raw[first : min(first + RAW_BYTES, size_bytes)], peer=peer, round=0)
        for first in range(0, size_bytes, RAW_BYTES)
    ]
    for operation in pending:
        operation.wait(TIMEOUT)
    return time.monotonic() - began


def memcpy(size_bytes: int) -> float:
    """Seconds that one process takes to copy as many bytes."""
    torch.set_num_threads(1)
    source = torch.ones(size_bytes, dtype=torch.uint8)
    destination = torch.ones(size_bytes, dtype=torch.uint8)
    began = time.monotonic()
    destination.copy_(source)
    return time.monotonic() - began
