"""Measures what a transfer costs its processes themselves, whatever the number of its bytes.

    PYTHONPATH=common:. python -m tools.bench.realloc_hosts [--repeats 15]

Where a GPU copies, this is all that its hosts do, and it must take less time than the copies.
Weights are nine layers of Llama 70B with every size divided by 64: as many tensors, pieces and
rounds as in `tools.bench.realloc --device cuda`, in 4,096 times less memory. They move as there:
the receiver reads where the sender has them, through shared memory instead of CUDA IPC.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, TransferProgram
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.limits import TransferLimits
from realloc.reallocation.planner import plan_transfer
from realloc.transfer.communicator import Memory
from realloc.transfer.executor import execute
from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import connect_links
from realloc.transfer.rendezvous import TransferStore, connect_store
from realloc.transfer.shared_memory import SharedMemorySegments
from realloc.transfer.staging import DEFAULT_STAGING_BYTES, StagingBuffers
from tests.support.rank_processes import RankProcesses
from tools.bench.realloc import parse

HOST = "127.0.0.1"
TIMEOUT = 60.0
SHRUNK = 64
IN_PLACE_BYTES = DEFAULT_STAGING_BYTES // 2
"""What a GPU reads at once of parameters whose elements may have to be cast."""
PAIRS = (("megatron:d1t1p1", "vllm:d1t1p1"), ("megatron:d1t2p1", "vllm:d1t1p1"))
LLAMA = ModelArchitecture(
    family="llama",
    num_layers=9,
    hidden_size=8192 // SHRUNK,
    intermediate_size=28672 // SHRUNK,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128 // SHRUNK,
    vocab_size=32000 // SHRUNK,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
)


class OpenSegments(SharedMemorySegments):
    """Shared memory that senders lend, as they do on a GPU."""

    @property
    def memory(self) -> Memory:
        return Memory.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One process."""

    program: TransferProgram
    communicator: LendingCommunicator
    source: dict[str, torch.Tensor]
    destination: dict[str, torch.Tensor]
    staging: StagingBuffers


SHARD: list[Shard] = []


def prepare(index: int, count: int, port: int, pair: tuple[str, str]) -> int:
    """Connect and make this process's parameters; how many pieces of memory it moves."""
    torch.set_num_threads(1)
    source, destination = (parse(text, 0) for text in pair)
    have = [Endpoint(name=f"{device}", device=device, node=0) for device in source.devices]
    want = [Endpoint(name=f"{count - 1}", device=0, node=0)]
    plan = plan_transfer(
        LLAMA,
        source,
        destination,
        source_endpoints=have,
        destination_endpoints=want,
        dtype="bfloat16",
        limits=TransferLimits(
            staging_bytes=TransferLimits().staging_bytes // SHRUNK**2, max_operations=32
        ),
    )
    segments = OpenSegments()
    communicator = LendingCommunicator(
        endpoint=index,
        num_endpoints=count,
        links=connect_links(
            store=connect_store(HOST, port, TIMEOUT),
            group_id="hosts",
            endpoint=index,
            peers=tuple(peer for peer in range(count) if peer != index),
            timeout_seconds=TIMEOUT,
        ),
        segments=segments,
        device=torch.device("cpu"),
    )
    held = [
        {
            parameter.name: segments.allocate(2 * torch.Size(parameter.shape).numel())
            .view(torch.bfloat16)
            .view(parameter.shape)
            .fill_(1.0)
            for rank, endpoint in enumerate(side)
            if endpoint.name == f"{index}"
            for parameter in local_parameters(LLAMA, layout, rank).parameters
        }
        for side, layout in ((have, source), (want, destination))
    ]
    program = plan.programs[index]
    SHARD.append(
        Shard(
            program=program,
            communicator=communicator,
            source=held[0],
            destination=held[1],
            staging=StagingBuffers(
                communicator.allocate,
                staging_bytes=DEFAULT_STAGING_BYTES // SHRUNK**2,
                chunk_bytes=IN_PLACE_BYTES // SHRUNK**2,
            ),
        )
    )
    return len(program.sends.blocks) + len(program.receives.blocks)


def transfer(uncast: Sequence[int], digests: bool) -> float:
    """Seconds of the processor."""
    shard = SHARD[0]
    began = time.process_time()
    execute(
        shard.program,
        shard.communicator,
        shard.source,
        shard.destination,
        staging=shard.staging,
        dtype="bfloat16",
        timeout_seconds=TIMEOUT,
        digests=digests,
        uncast=uncast,
    )
    return time.process_time() - began


def bench(pair: tuple[str, str], repeats: int) -> None:
    count = 1 + len(parse(pair[0], 0).devices)
    store, ranks = TransferStore(HOST), RankProcesses(count)
    pieces = ranks.run(
        prepare, [(index, count, store.port, pair) for index in range(count)],
        timeout_seconds=TIMEOUT,
    )  # fmt: skip
    print(f"{pair[0]} → {pair[1]}, pieces of each process: {', '.join(map(str, pieces))}")
    for label, uncast in (("whole rounds", range(count)), ("in chunks", ())):
        for digests in (False, True):
            taken = [
                ranks.run(transfer, [(tuple(uncast), digests)] * count, timeout_seconds=TIMEOUT)
                for _ in range(repeats)
            ]
            medians = [1e3 * statistics.median(of) for of in zip(*taken, strict=True)]
            print(
                f"  {label + (', with digests' if digests else ''):28s}"
                + "".join(f"{each:7.1f} ms" for each in medians),
                flush=True,
            )
    ranks.close()
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    load = os.getloadavg()[0]
    print(
        f"{datetime.now(UTC):%Y-%m-%d} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {load:.1f}; processor time of sender(s) and receiver"
    )
    for pair in PAIRS:
        bench(pair, repeats)


if __name__ == "__main__":
    main()
