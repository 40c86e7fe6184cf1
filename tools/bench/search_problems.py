"""Search problems for benchmarks: PPO and safe RLHF on 8 to 1,024 H100s, by roofline.

The seconds and bytes are of the right size, not measured: they give a searcher what real
problems have, thousands of options per call, memory that binds, moves that cost.

    python -m tools.bench.search_problems ppo-128 /tmp/ppo-128.npz
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.strategy import ParallelStrategy
from realloc.search.problem import SearchProblem
from realloc.search.problem_file import save_problem

# H100 SXM data sheet: 989 TFLOP/s bf16 dense, 3.35 TB/s, 80 GB, NVLink 450 GB/s one way;
# 400 Gb/s InfiniBand per GPU. The fractions are what large matrix products, decoding kernels
# and collectives commonly reach.
FLOPS = 0.45 * 989e12
MEMORY_BYTES_PER_SECOND = 0.6 * 3.35e12
NVLINK_BYTES_PER_SECOND = 0.7 * 450e9
NETWORK_BYTES_PER_SECOND = 0.8 * 50e9
DEVICE_BYTES = 80 * 10**9
LAUNCH_SECONDS = 1.5e-5
DEVICES_PER_NODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A dense transformer, as far as the roofline sees it."""

    parameters: float
    layers: int
    hidden: int
    kv_bytes_per_token: float


B7 = Model(parameters=6.7e9, layers=32, hidden=4096, kv_bytes_per_token=2 * 32 * 1024 * 2)
B70 = Model(parameters=69e9, layers=80, hidden=8192, kv_bytes_per_token=2 * 80 * 1024 * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function call of a benchmark graph."""

    name: str
    model_index: int
    model: Model
    kind: int
    """0 generate, 1 inference, 2 train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A graph, its batch and its cluster."""

    calls: tuple[Call, ...]
    edges: tuple[tuple[int, int], ...]
    num_devices: int
    batch: int
    prompt_tokens: int = 1024
    new_tokens: int = 1024

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a call costs under one strategy."""

    seconds: float
    resident_bytes: int
    active_bytes: int


def ppo(num_devices: int, batch: int, actor: Model, critic: Model) -> Workload:
    """Six calls: rollout, three inferences, two trainings."""
    calls = (
        Call(name="actor_gen", model_index=0, model=actor, kind=0),
        Call(name="reward_inf", model_index=2, model=critic, kind=1),
        Call(name="ref_inf", model_index=3, model=actor, kind=1),
        Call(name="critic_inf", model_index=1, model=critic, kind=1),
        Call(name="actor_train", model_index=0, model=actor, kind=2),
        Call(name="critic_train", model_index=1, model=critic, kind=2),
    )
    edges = tuple((0, b) for b in (1, 2, 3)) + tuple((a, b) for a in (1, 2, 3) for b in (4, 5))
    return Workload(calls=calls, edges=edges, num_devices=num_devices, batch=batch)


def safe_rlhf(num_devices: int, batch: int, actor: Model, critic: Model) -> Workload:
    """Nine calls: PPO with a cost model and a critic of the costs (arXiv 2310.12773)."""
    calls = (
        Call(name="actor_gen", model_index=0, model=actor, kind=0),
        Call(name="reward_inf", model_index=3, model=critic, kind=1),
        Call(name="cost_inf", model_index=4, model=critic, kind=1),
        Call(name="ref_inf", model_index=5, model=actor, kind=1),
        Call(name="critic_inf", model_index=1, model=critic, kind=1),
        Call(name="cost_critic_inf", model_index=2, model=critic, kind=1),
        Call(name="actor_train", model_index=0, model=actor, kind=2),
        Call(name="critic_train", model_index=1, model=critic, kind=2),
        Call(name="cost_critic_train", model_index=2, model=critic, kind=2),
    )
    middle = range(1, 6)
    edges = tuple((0, b) for b in middle) + tuple((a, b) for a in middle for b in (6, 7, 8))
    return Workload(calls=calls, edges=edges, num_devices=num_devices, batch=batch)


WORKLOADS = {
    "ppo-8": ppo(8, 128, B7, B7),
    "ppo-128": ppo(128, 1024, B70, B7),
    "ppo-128-large-critic": ppo(128, 512, B70, B70),
    "ppo-1024": ppo(1024, 8192, B70, B7),
    "safe-rlhf-8": safe_rlhf(8, 128, B7, B7),
    "safe-rlhf-64": safe_rlhf(64, 512, B70, B7),
}


def build_problem(workload: Workload) -> SearchProblem:
    """All options that fit a device by themselves, and the seconds of all moves."""
    rows: list[tuple[int, int, int, float, int, int, int]] = []
    layouts: dict[int, dict[tuple[DeviceMesh, ParallelStrategy], int]] = {}
    for index, call in enumerate(workload.calls):
        for mesh in meshes(workload.num_devices):
            for strategy in strategies(mesh.num_devices, call.model, workload.num_devices):
                for estimate in estimates(call, strategy, workload):
                    if estimate.resident_bytes + estimate.active_bytes > DEVICE_BYTES:
                        continue
                    known = layouts.setdefault(call.model_index, {})
                    layout = known.setdefault((mesh, strategy), len(known))
                    rows.append(
                        (
                            index,
                            mesh.first_device,
                            mesh.num_devices,
                            estimate.seconds,
                            estimate.resident_bytes,
                            estimate.active_bytes,
                            layout if _moves(workload, call) else -1,
                        )
                    )
    columns = list(zip(*rows, strict=True))
    trained = {call.model_index: call.model for call in workload.calls if call.kind == 2}
    return SearchProblem(
        num_devices=workload.num_devices,
        device_memory_bytes=DEVICE_BYTES,
        call_names=tuple(call.name for call in workload.calls),
        call_model=np.array([call.model_index for call in workload.calls]),
        call_kind=np.array([call.kind for call in workload.calls]),
        edges=np.array(workload.edges),
        option_call=np.array(columns[0]),
        option_first_device=np.array(columns[1]),
        option_num_devices=np.array(columns[2]),
        option_seconds=np.array(columns[3]),
        option_resident_bytes=np.array(columns[4]),
        option_active_bytes=np.array(columns[5]),
        option_layout=np.array(columns[6]),
        realloc_seconds={
            index: move_seconds(model, list(layouts[index])) for index, model in trained.items()
        },
    )


def _moves(workload: Workload, call: Call) -> bool:
    return any(c.kind == 2 and c.model_index == call.model_index for c in workload.calls)


def meshes(num_devices: int) -> Iterator[DeviceMesh]:
    """Every legal mesh; on large clusters only runs of nodes whose size divides their place."""
    nodes = max(1, num_devices // DEVICES_PER_NODE)
    per_node = min(DEVICES_PER_NODE, num_devices)
    cluster = Cluster(
        num_nodes=nodes,
        devices_per_node=per_node,
        device_kind="H100",
        device_memory_bytes=DEVICE_BYTES,
    )
    if num_devices <= 128:
        yield from cluster.meshes()
        return
    step = 1
    while step <= nodes:
        for first in range(0, nodes, step):
            yield DeviceMesh(first_device=first * per_node, num_devices=step * per_node)
        step *= 2
    for eighths in (3, 5, 6, 7):
        for first in range(8 - eighths + 1):
            size = num_devices // 8
            yield DeviceMesh(first_device=first * size, num_devices=eighths * size)


def strategies(num_devices: int, model: Model, cluster_devices: int) -> Iterator[ParallelStrategy]:
    """Tensor parallelism within a node; stages that divide the layers."""
    lowest = 1 if cluster_devices <= 8 or model.parameters < 2e10 else 4
    for tensor in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8):
            fits = num_devices % (tensor * pipeline) == 0 and model.layers % pipeline == 0
            large = cluster_devices > 128 and (tensor * pipeline < lowest or pipeline > 4)
            if fits and not large and tensor <= num_devices:
                yield ParallelStrategy(
                    data=num_devices // (tensor * pipeline), tensor=tensor, pipeline=pipeline
                )


def estimates(call: Call, strategy: ParallelStrategy, work: Workload) -> Iterator[Estimate]:
    """One estimate per number of micro-batches that is worth trying."""
    sequences = math.ceil(work.batch / strategy.data)
    if call.kind == 0:
        yield _generate(call.model, strategy, work, sequences)
        return
    for micro in (1, 4) if work.num_devices <= 128 else (4,):
        sequences_at_once = max(1, min(sequences, micro))
        yield (_train if call.kind == 2 else _infer)(
            call.model, strategy, work, sequences, sequences_at_once
        )


def _generate(model: Model, s: ParallelStrategy, work: Workload, sequences: int) -> Estimate:
    """Prefill at matrix speed, then steps that read the weights and the key-value cache."""
    weights = 2 * model.parameters / (s.tensor * s.pipeline)
    prefill = 2 * model.parameters * sequences * work.prompt_tokens / FLOPS
    prefill /= s.tensor * s.pipeline
    context = work.prompt_tokens + work.new_tokens / 2
    cache = sequences * context * model.kv_bytes_per_token / (s.tensor * s.pipeline)
    step = (weights + cache) / MEMORY_BYTES_PER_SECOND
    layer_messages = 2 * model.layers / s.pipeline * (8e-6 if s.tensor > 1 else 0.0)
    step += layer_messages + model.layers / s.pipeline * LAUNCH_SECONDS + 2e-5
    steps = work.new_tokens * (1 + 0.25 * (s.pipeline - 1)) * s.pipeline**0.5
    room = sequences * work.tokens * model.kv_bytes_per_token / (s.tensor * s.pipeline)
    return Estimate(
        seconds=prefill + steps * step,
        resident_bytes=int(weights),
        active_bytes=int(min(room, 0.45 * DEVICE_BYTES)) + 2 * 10**9,
    )


def _infer(
    model: Model, s: ParallelStrategy, work: Workload, sequences: int, at_once: int
) -> Estimate:
    seconds = _pass_seconds(model, s, work, sequences, at_once)
    active = at_once * work.tokens * model.hidden * 2 * 12 / s.tensor + 10**9
    return Estimate(
        seconds=seconds,
        resident_bytes=int(2 * model.parameters / (s.tensor * s.pipeline)),
        active_bytes=int(active),
    )


def _train(
    model: Model, s: ParallelStrategy, work: Workload, sequences: int, at_once: int
) -> Estimate:
    """Forward, recomputation and backward; gradients reduced once per four mini-batches."""
    forward = _pass_seconds(model, s, work, sequences, at_once)
    shard = model.parameters / (s.tensor * s.pipeline)
    inside = s.tensor * s.data <= DEVICES_PER_NODE
    bandwidth = NVLINK_BYTES_PER_SECOND if inside else NETWORK_BYTES_PER_SECOND
    reduction = 4 * 4 * shard * 2 * (s.data - 1) / s.data / bandwidth
    resident = shard * (2 + 4 + 12 / s.data)
    stored = at_once * work.tokens * model.hidden * 2 * model.layers / s.tensor
    return Estimate(
        seconds=4 * forward + reduction + 4 * 0.05,
        resident_bytes=int(resident),
        active_bytes=int(stored + 2 * 10**9),
    )


def _pass_seconds(
    model: Model, s: ParallelStrategy, work: Workload, sequences: int, at_once: int
) -> float:
    """One forward pass over a replica's sequences, with the pipeline's bubble."""
    micro_batches = math.ceil(sequences / at_once)
    tokens = at_once * work.tokens
    matrices = 2 * model.parameters * tokens / FLOPS / (s.tensor * s.pipeline)
    matrices *= 1 + 0.04 * math.log2(s.tensor)
    layers = model.layers / s.pipeline
    reduced = 4 * tokens * model.hidden * 2 * (s.tensor - 1) / s.tensor
    messages = layers * (reduced / NVLINK_BYTES_PER_SECOND + 6 * LAUNCH_SECONDS)
    hop = tokens * model.hidden * 2 / NETWORK_BYTES_PER_SECOND if s.pipeline > 1 else 0.0
    return (matrices + messages + hop) * (micro_batches + s.pipeline - 1)


def move_seconds(
    model: Model, layouts: list[tuple[DeviceMesh, ParallelStrategy]]
) -> NDArray[np.float64]:
    """[L, L] seconds: the busiest device's incoming or outgoing bytes over its link."""
    first = np.array([mesh.first_device for mesh, _ in layouts], dtype=np.int64)
    num = np.array([mesh.num_devices for mesh, _ in layouts], dtype=np.int64)
    parts = np.array([s.tensor * s.pipeline for _, s in layouts], dtype=np.float64)
    copies = num / parts
    size = 2 * model.parameters
    low = np.minimum(first[:, None], first[None, :])
    high = np.maximum((first + num)[:, None], (first + num)[None, :])
    one_node = low // DEVICES_PER_NODE == (high - 1) // DEVICES_PER_NODE
    bandwidth = np.where(one_node, NVLINK_BYTES_PER_SECOND, NETWORK_BYTES_PER_SECOND)
    inside = np.minimum((first + num)[:, None], (first + num)[None, :]) - np.maximum(
        first[:, None], first[None, :]
    )
    held = (
        np.clip(inside, 0, None) / num[None, :] * np.minimum(1.0, parts[None, :] / parts[:, None])
    )
    incoming = size / parts[None, :] * (1 - 0.9 * held)
    outgoing = size / parts[:, None] * np.maximum(1.0, copies[None, :] / copies[:, None] / 8)
    seconds: NDArray[np.float64] = (
        np.maximum(incoming, outgoing * (1 - 0.9 * held)) / bandwidth + 0.05
    )
    np.fill_diagonal(seconds, 0.0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(WORKLOADS))
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    problem = build_problem(WORKLOADS[arguments.name])
    save_problem(problem, arguments.path)
    counts = [len(problem.options_of(call)) for call in range(problem.num_calls)]
    print(f"{arguments.path}: {problem.num_plans():.1e} plans, options per call {counts}")


if __name__ == "__main__":
    main()
