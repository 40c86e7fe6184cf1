"""How fast reallocations are planned: a 70B Llama on 128 devices, and a 1T mixture of experts.

    PYTHONPATH=common:. python -m tools.bench.plan_reallocation [--quick]

Prints, for each pair of layouts, the seconds of the plan (everything that chooses who sends
what in which round), the seconds and the size of one process's program made from it, and how
near the traffic comes to its lower bounds. Seconds are processor time of one thread, the best
of five.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Blocks, Endpoint, Messages, TransferPlan, TransferProgram
from realloc.reallocation.planner import plan_transfer

DEVICES_PER_NODE = 8

LLAMA_70B = ModelArchitecture(
    family="llama",
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
)
MOE_1T = ModelArchitecture(
    family="qwen3_moe",
    num_layers=64,
    hidden_size=7168,
    intermediate_size=18432,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=163_840,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    qk_norm=True,
    num_experts=384,
    experts_per_token=8,
    expert_intermediate_size=2048,
)
"""1.04e12 parameters, in the proportions of Kimi K2."""

LLAMA_PAIRS = (
    ("megatron:d2t8p8", "vllm:d16t8p1"),
    ("megatron:d1t8p16", "vllm:d16t8p1"),
    ("megatron:d4t8p4", "vllm:d16t8p1"),
    ("megatron:d8t8p2", "vllm:d16t8p1"),
    ("megatron:d16t8p1", "vllm:d16t8p1"),
    ("megatron:d2t8p8", "vllm:d32t4p1"),
    ("megatron:d4t4p8", "vllm:d32t4p1"),
    ("megatron:d8t4p4", "vllm:d16t8p1"),
    ("megatron:d2t8p8", "vllm:d64t2p1"),
    ("megatron:d8t2p8", "vllm:d16t8p1"),
    ("megatron:d2t8p8", "vllm:d8t16p1"),
    ("megatron:d2t8p8", "vllm:d8t8p2"),
    ("megatron:d2t8p8", "vllm:d16t4p2"),
    ("megatron:d2t8p8v5", "vllm:d16t8p1"),
    ("megatron:d4t4p8v5", "vllm:d32t4p1"),
    ("megatron:d2t8p8", "megatron:d4t8p4"),
    ("megatron:d2t8p8", "megatron:d8t16p1"),
    ("megatron:d8t16p1", "megatron:d2t8p8"),
    ("vllm:d16t8p1", "megatron:d2t8p8"),
    ("huggingface:d1t1p1", "megatron:d2t8p8"),
    ("megatron:d2t8p8", "huggingface:d1t1p1"),
)
FSDP_PAIRS = (
    ("fsdp:d128t1p1", "vllm:d16t8p1"),
    ("megatron:d2t8p8", "fsdp:d128t1p1"),
)
MOE_PAIRS = (
    ("megatron:d64t2p8e64", "vllm:d64t8p1e64"),
    ("megatron:d32t4p8e32", "vllm:d32t16p1e32"),
    ("megatron:d128t1p8e64", "vllm:d16t32p1e2"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One plan."""

    plan: TransferPlan
    seconds: float
    program_seconds: float
    """Seconds to make the program of the last endpoint."""
    program: TransferProgram


def layout(text: str) -> Layout:
    """A layout on the devices from 0 on."""
    kind, strategy = text.split(":")
    parsed = ParallelStrategy.parse(strategy)
    return Layout(kind=LayoutKind(kind), strategy=parsed, devices=tuple(range(parsed.num_ranks)))


def endpoints(layout_: Layout, role: str) -> Sequence[Endpoint]:
    """A process per device."""
    return [
        Endpoint(name=f"{role}-{device}", device=device, node=device // DEVICES_PER_NODE)
        for device in layout_.devices
    ]


def measure(architecture: ModelArchitecture, pair: tuple[str, str], repeats: int) -> Measurement:
    """Plan a pair several times and keep the fastest."""
    source, destination = map(layout, pair)
    have, want = endpoints(source, "trainer"), endpoints(destination, "generation")
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        plan = plan_transfer(
            architecture,
            source,
            destination,
            source_endpoints=have,
            destination_endpoints=want,
            dtype="bfloat16",
        )
        seconds.append(time.process_time() - start)
    start = time.process_time()
    program = plan.programs[len(plan.programs) - 1]
    return Measurement(
        plan=plan,
        seconds=min(seconds),
        program_seconds=time.process_time() - start,
        program=program,
    )


def size_bytes(program: TransferProgram) -> int:
    """Bytes of a program's arrays."""
    return sum(_array_bytes(messages) for messages in (program.sends, program.receives))


def _array_bytes(of: Messages | Blocks) -> int:
    total = 0
    for field in fields(of):
        value = getattr(of, field.name)
        total += value.nbytes if isinstance(value, np.ndarray) else _array_bytes(value)
    return total


def show(pair: tuple[str, str], of: Measurement) -> None:
    """One line of the table."""
    traffic, program = of.plan.traffic, of.program
    ratio = _ratio(traffic.cross_device_bytes, traffic.cross_device_bound)
    print(
        f"{pair[0]:>20} → {pair[1]:<18} {1e3 * of.seconds:8.1f} {1e3 * of.program_seconds:8.1f}"
        f" {len(program.receives.blocks) + len(program.sends.blocks):8d}"
        f" {size_bytes(program) / 2**20:7.2f} {program.num_rounds:6d}"
        f" {traffic.total_bytes / 1e9:8.1f} {traffic.cross_device_bytes / 1e9:8.1f} {ratio}"
        f" {traffic.cross_node_bytes / 1e9:8.1f}"
        f" {_ratio(traffic.cross_node_bytes, traffic.cross_node_bound)}"
        f" {traffic.busiest_send_bytes / 1e9:7.2f}"
        f" {_ratio(traffic.busiest_send_bytes, traffic.busiest_send_bound)}"
        f" {traffic.busiest_receive_bytes / 1e9:7.2f}"
        f" {_ratio(traffic.busiest_receive_bytes, traffic.busiest_receive_bound)}"
        f" {traffic.inside_send_bytes / 1e9:7.2f}"
        f" {_ratio(traffic.inside_send_bytes, traffic.inside_send_bound)}"
    )


def _ratio(value: int, bound: int) -> str:
    return f"{value / bound:6.3f}" if bound else "     –"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of each, and one MoE pair")
    quick = parser.parse_args().quick
    print(
        f"{'from':>20}   {'to':<18} {'plan ms':>8} {'prog ms':>8} {'blocks':>8} {'MiB':>7}"
        f" {'rounds':>6} {'GB':>8} {'x-dev GB':>8} {'/bound':>6} {'x-node':>8} {'/bound':>6}"
        f" {'out':>7} {'/bound':>6} {'in':>7} {'/bound':>6} {'inside':>7} {'/bound':>6}"
    )
    print("Llama 70B, bfloat16, 8 devices per node")
    slowest = 0.0
    for pair in LLAMA_PAIRS:
        found = measure(LLAMA_70B, pair, 1 if quick else 5)
        slowest = max(slowest, found.seconds)
        show(pair, found)
    print(f"slowest of these {len(LLAMA_PAIRS)}: {1e3 * slowest:.1f} ms")
    print("the same model, cut 128 ways along every first dimension")
    for pair in FSDP_PAIRS:
        show(pair, measure(LLAMA_70B, pair, 1 if quick else 5))
    print("1T mixture of experts, bfloat16")
    for pair in MOE_PAIRS[: 1 if quick else None]:
        show(pair, measure(MOE_1T, pair, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
