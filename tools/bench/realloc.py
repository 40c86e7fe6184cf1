"""Measures reallocation on this machine against what the machine can do.

    PYTHONPATH=common:. python -m tools.bench.realloc [--megabytes 256] [--repeats 7]
    PYTHONPATH=common:. python -m tools.bench.realloc --device cuda [--megabytes 16000]

On CPUs processes reach each other by gloo and shared memory; on a GPU all of them share one, and
weights move within a process or by CUDA IPC. Every figure is the median of its repeats; what is
compared is measured in turn, so that a busy machine slows both. Bandwidths count bytes that
destinations receive. Raw gloo is measured twice: over as many pairs as there are senders, which is
its best, and with as many bytes between each two processes as the reallocation moves.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import torch

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import TransferSession
from realloc.transfer.rendezvous import TransferStore
from tests.support.rank_processes import RankProcesses
from tools.bench.realloc_shards import (
    HOST,
    TIMEOUT,
    close_shard,
    copy_on_gpu,
    digest_on_gpu,
    memcpy,
    open_shard,
    prepare,
    prepare_on_gpu,
    profile,
    raw,
    raw_alike,
    reallocate,
)

PAIRS = (
    ("megatron:d1t2p1", "vllm:d1t2p1"),
    ("megatron:d1t2p1", "vllm:d2t1p1"),
    ("megatron:d1t1p2", "vllm:d1t2p1"),
)
CUDA_PAIRS = (
    ("within one process", 1, ("megatron:d1t1p1", "vllm:d1t1p1")),
    ("CUDA IPC", 2, ("megatron:d1t1p1", "vllm:d1t1p1")),
    ("CUDA IPC", 3, ("megatron:d1t2p1", "vllm:d1t1p1")),
)
"""How, number of processes, layouts."""
SWAPS = (("d1t4p1", "d2t2p1"), ("d2t2p1", "d1t2p2"))


def architecture(megabytes: int) -> ModelArchitecture:
    """A Llama of at least this size in float32."""
    layer = 4 * (2048 * (2048 + 2 * 512 + 2048) + 3 * 2048 * 5632)
    outer = 4 * 2 * 2048 * 8192
    layers = max(2, -(-(megabytes * 10**6 - outer) // layer))
    return ModelArchitecture(
        family="llama",
        num_layers=layers + layers % 2,
        hidden_size=2048,
        intermediate_size=5632,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=8192,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )


def cuda_architecture(megabytes: int) -> ModelArchitecture:
    """As many layers of Llama 70B in bfloat16 as come near this size."""
    layer = 2 * (8192 * (8192 + 2 * 1024 + 8192) + 3 * 8192 * 28672)
    return ModelArchitecture(
        family="llama",
        num_layers=max(1, round(megabytes * 10**6 / layer)),
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=32000,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
    )


Reference = Callable[[int], float]
"""Seconds that as many bytes take some other way."""


def report(name: str, rate: float, references: Mapping[str, float]) -> None:
    shares = [f"{rate / other:4.0%} of {label} {other:.2f}" for label, other in references.items()]
    print(f"{name:58s} {rate:6.2f} GB/s   " + "   ".join(shares), flush=True)


def median_rate(size_bytes: int, seconds: Sequence[float]) -> float:
    return size_bytes / statistics.median(seconds) / 1e9


def parse(text: str, first_device: int) -> Layout:
    kind, strategy = text.split(":")
    parsed = ParallelStrategy.parse(strategy)
    devices = tuple(range(first_device, first_device + parsed.num_ranks))
    return Layout(kind=LayoutKind(kind), strategy=parsed, devices=devices)


def session(ports: Sequence[int], group_id: str, dtype: str = "float32") -> TransferSession:
    return TransferSession(
        session_id="bench",
        group_id=group_id,
        store_host=HOST,
        store_port=ports[0],
        num_endpoints=len(ports),
        canonical_tensors=(),
        dtype=dtype,
        timeout_seconds=TIMEOUT,
        uncast=tuple(range(len(ports))),
    )


def bench_pair(
    ranks: RankProcesses,
    transfer: TransferSession,
    model: ModelArchitecture,
    pair: tuple[str, str],
    repeats: int,
    references: Mapping[str, Reference],
) -> None:
    """One reallocation of what the processes hold already."""
    source = parse(pair[0], 0)
    destination = parse(pair[1], len(source.devices))
    received = ranks.run(
        prepare,
        [(index, model, source, destination) for index in range(transfer.num_endpoints)],
        timeout_seconds=TIMEOUT,
    )
    measure(
        ranks,
        transfer,
        f"{pair[0]} → {pair[1]}, {sum(received) / 1e6:.0f} MB",
        sum(received),
        repeats,
        references,
    )


def measure(
    ranks: RankProcesses,
    transfer: TransferSession,
    name: str,
    total: int,
    repeats: int,
    references: Mapping[str, Reference],
) -> None:
    """What was prepared, without and with digests, beside other ways to move as many bytes."""
    count = transfer.num_endpoints

    def once(digests: bool) -> float:
        reports = ranks.run(
            reallocate,
            [(transfer, index, digests) for index in range(count)],
            timeout_seconds=TIMEOUT,
        )
        return float(max(r.seconds for r in reports))

    once(True)
    plain, digested = [], []
    others: dict[str, list[float]] = {label: [] for label in references}
    for _ in range(repeats):
        for label, reference in references.items():
            others[label].append(reference(total))
        plain.append(once(False))
        digested.append(once(True))
    rates = {label: median_rate(total, seconds) for label, seconds in others.items()}
    report(name, median_rate(total, plain), rates)
    report(f"{name}, with digests", median_rate(total, digested), rates)


def show_steps(of_endpoints: Sequence[list[tuple[str, float]]]) -> None:
    """What the host of each endpoint did, profiled, which itself takes time."""
    for index, steps in enumerate(of_endpoints):
        print(f"  endpoint {index}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in steps))


def bench_cuda(model: ModelArchitecture, repeats: int) -> None:
    print(f"{torch.cuda.get_device_name(0)}, bfloat16")
    for how, count, pair in CUDA_PAIRS:
        ranks = RankProcesses(count)
        ports = ranks.run(
            open_shard,
            [(f"shard-{index}", None, True) for index in range(count)],
            timeout_seconds=TIMEOUT,
        )
        source, destination = parse(pair[0], 0), parse(pair[1], 0)
        received = ranks.run(
            prepare_on_gpu,
            [(index, model, source, destination, count) for index in range(count)],
            timeout_seconds=TIMEOUT,
        )

        def reference(total: int, ranks: RankProcesses = ranks) -> float:
            return float(ranks.run(copy_on_gpu, [(total,)], timeout_seconds=TIMEOUT)[0])

        measure(
            ranks,
            session(ports, f"cuda-{count}", "bfloat16"),
            f"{pair[0]} → {pair[1]}, {how}, {sum(received) / 1e9:.1f} GB",
            sum(received),
            repeats,
            {"copy on the device": reference},
        )
        if count == 1:
            alone = [ranks.run(digest_on_gpu, [()], timeout_seconds=TIMEOUT)[0] for _ in range(3)]
            rate = median_rate(alone[0][0], [seconds for _, seconds in alone])
            print(f"digests of one side alone: {rate:.0f} GB/s")
        for digests in (False, True):
            arguments = [
                (session(ports, f"cuda-{count}", "bfloat16"), index, digests)
                for index in range(count)
            ]
            show_steps(ranks.run(profile, arguments, timeout_seconds=TIMEOUT))
        ranks.run(close_shard, [()] * count, timeout_seconds=TIMEOUT)
        ranks.close()


def bench_gloo(model: ModelArchitecture, repeats: int) -> None:
    ranks = RankProcesses(4)
    ports = ranks.run(open_shard, [(f"shard-{index}", None) for index in range(4)])
    transfer = session(ports, "gloo")

    def two_pairs(total: int) -> float:
        arguments = [(transfer, index, total // 2) for index in range(4)]
        return float(max(ranks.run(raw, arguments, timeout_seconds=TIMEOUT)))

    def same_peers(total: int) -> float:
        arguments = [(transfer, index) for index in range(4)]
        return float(max(ranks.run(raw_alike, arguments, timeout_seconds=TIMEOUT)))

    references = {"raw gloo, two pairs": two_pairs, "raw gloo, the same peers": same_peers}
    for pair in PAIRS:
        bench_pair(ranks, transfer, model, pair, repeats, references)
    ranks.close()


def bench_shared_memory(model: ModelArchitecture, repeats: int) -> None:
    ranks = RankProcesses(2)
    ports = ranks.run(open_shard, [(f"shard-{index}", 0) for index in range(2)])
    transfer = session(ports, "shared")

    def reference(total: int) -> float:
        return float(ranks.run(memcpy, [(total,)], timeout_seconds=TIMEOUT)[0])

    pair = ("megatron:d1t1p1", "vllm:d1t1p1")
    bench_pair(ranks, transfer, model, pair, repeats, {"memcpy, one process": reference})
    ranks.close()


def bench_swap(model: ModelArchitecture, repeats: int) -> None:
    from tests.support import megatron_pair  # imports Megatron-core

    store = TransferStore(HOST)
    ranks = RankProcesses(4)
    ports = ranks.run(
        megatron_pair.open_rank,
        [(rank, 4, store.port) for rank in range(4)],
        timeout_seconds=TIMEOUT,
    )
    transfer = session(ports, "swap")
    for number, (source, destination) in enumerate(SWAPS):
        ids = (f"{number}/from", f"{number}/to")
        for model_id, strategy, seed in zip(ids, (source, destination), (1, 2), strict=True):
            ranks.run(
                megatron_pair.create,
                [(model_id, model, strategy, seed)] * 4,
                timeout_seconds=TIMEOUT,
            )
        ours, theirs = [], []
        for _ in range(repeats + 1):
            swapped = ranks.run(megatron_pair.swap, [ids] * 4, timeout_seconds=TIMEOUT)
            moved = ranks.run(
                megatron_pair.reallocate,
                [(*ids, model, source, destination, transfer)] * 4,
                timeout_seconds=TIMEOUT,
            )
            theirs.append(max(seconds for seconds, _ in swapped))
            ours.append(max(r.seconds for r in moved))
        our_bytes = sum(r.received_bytes for r in moved)
        their_bytes = sum(received for _, received in swapped)
        # The first of each makes plans and connections.
        ours_median, theirs_median = statistics.median(ours[1:]), statistics.median(theirs[1:])
        print(
            f"{source} → {destination}: {ours_median:.3f} s with digests, "
            f"{our_bytes / 1e6:.0f} MB between ranks; swap_model_weights {theirs_median:.3f} s, "
            f"{their_bytes / 1e6:.0f} MB: {theirs_median / ours_median:.1f} times as fast",
            flush=True,
        )
    ranks.close()
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--megabytes", type=int, help="of the model: 256, or 16000 on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--only", choices=("gloo", "shared_memory", "swap"), help="one part of the table"
    )
    options = parser.parse_args()
    if options.device == "cuda":
        model = cuda_architecture(options.megabytes or 16000)
    else:
        model = architecture(options.megabytes or 256)
    load = os.getloadavg()[0]
    print(
        f"{datetime.now(UTC):%Y-%m-%d} {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}; "
        f"llama of {model.num_layers} layers"
    )
    if options.device == "cuda":
        bench_cuda(model, options.repeats)
        return
    parts = {"gloo": bench_gloo, "shared_memory": bench_shared_memory, "swap": bench_swap}
    for name, bench in parts.items():
        if options.only in (None, name):
            bench(model, options.repeats)


if __name__ == "__main__":
    main()
