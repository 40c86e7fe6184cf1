"""Seconds and bytes of one function call under one strategy: roofline plus overheads.

Flops of a forward pass are 2 per parameter and token, of a backward pass twice that (Kaplan et
al., arXiv 2001.08361, section 2.1). Decoding reads all weights once per step. A tensor-parallel
layer reduces its activations twice per pass (Megatron-LM, arXiv 1909.08053, section 3); data
parallelism reduces gradients once per step in a ring (2 (d − 1) / d of their bytes).
"""

from dataclasses import dataclass

from realloc.core.model import Head, ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.hardware import Hardware
from realloc.dataflow.graph import CallKind

_BYTES_PER_ELEMENT = 4
_OPTIMIZER_ELEMENTS = 4
"""Gradient, master weight and two moments of each parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a call has to do in one iteration."""

    num_rows: int
    prompt_tokens: float
    """Mean tokens of a prompt, or of a whole row where nothing is generated."""
    response_tokens: float
    """Most tokens of a response."""
    num_steps: int = 1
    """Optimizer steps of a train call."""

    @property
    def num_tokens(self) -> float:
        return self.num_rows * (self.prompt_tokens + self.response_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """What a call takes."""

    seconds: float
    peak_bytes: int
    """Largest memory of one device: weights, optimizer, activations or cache."""


def num_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of a dense model, its head included."""
    a = architecture
    attention = 2 * a.hidden_size * (a.query_size + a.key_value_size)
    layer = attention + 3 * a.hidden_size * a.intermediate_size + 2 * a.hidden_size
    embedding = a.vocab_size * a.hidden_size
    head = a.hidden_size if a.head is Head.VALUE else embedding * (not a.tied_embeddings)
    return a.num_layers * layer + embedding + head + a.hidden_size


def estimate_call(
    kind: CallKind,
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
) -> CallCost:
    """Seconds and peak bytes of a call."""
    if kind is CallKind.GENERATE:
        return _generate(architecture, strategy, workload, hardware)
    return _forward(kind, architecture, strategy, workload, hardware)


def _forward(
    kind: CallKind,
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
) -> CallCost:
    trains = kind is CallKind.TRAIN
    passes = 3.0 if trains else 1.0
    parameters = num_parameters(architecture) / (strategy.tensor * strategy.pipeline)
    tokens = workload.num_tokens / strategy.data
    layers = architecture.num_layers / strategy.pipeline
    compute = passes * 2.0 * parameters * tokens / hardware.flops_per_second
    overhead = layers * passes * hardware.layer_overhead_seconds * workload.num_steps
    reduced = tokens * architecture.hidden_size * _BYTES_PER_ELEMENT * 2 * layers * passes
    seconds = hardware.call_overhead_seconds + compute + overhead
    if strategy.tensor > 1:
        seconds += reduced / hardware.link_bytes_per_second
        seconds += 2 * layers * passes * workload.num_steps * hardware.link_latency_seconds
    if trains and strategy.data > 1:
        ring = 2 * (strategy.data - 1) / strategy.data * parameters * _BYTES_PER_ELEMENT
        seconds += workload.num_steps * (
            ring / hardware.link_bytes_per_second + hardware.link_latency_seconds
        )
    # A pipeline without micro-batches runs its stages one after the other.
    seconds = seconds * (strategy.pipeline if strategy.pipeline > 1 else 1)
    resident = parameters * _BYTES_PER_ELEMENT
    if trains:
        resident += parameters * _BYTES_PER_ELEMENT * _OPTIMIZER_ELEMENTS / strategy.data
    active = tokens * architecture.hidden_size * _BYTES_PER_ELEMENT * (16 * layers if trains else 4)
    return CallCost(seconds=seconds, peak_bytes=int(resident + active / strategy.tensor))


def _generate(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
) -> CallCost:
    parameters = num_parameters(architecture) / strategy.tensor
    rows = workload.num_rows / strategy.data
    prefill = 2.0 * parameters * rows * workload.prompt_tokens / hardware.flops_per_second
    step = max(
        2.0 * parameters * rows / hardware.flops_per_second,
        parameters * _BYTES_PER_ELEMENT / hardware.memory_bytes_per_second,
    )
    decode = workload.response_tokens * (step + hardware.step_overhead_seconds)
    cache = (
        rows
        * (workload.prompt_tokens + workload.response_tokens)
        * 2
        * architecture.key_value_size
        * architecture.num_layers
        * _BYTES_PER_ELEMENT
        / strategy.tensor
    )
    # A shadow copy of the weights stands beside the live ones while they are replaced.
    peak = 2 * parameters * _BYTES_PER_ELEMENT + cache
    return CallCost(seconds=hardware.call_overhead_seconds + prefill + decode, peak_bytes=int(peak))


def estimate_reallocation_seconds(
    architecture: ModelArchitecture, num_destinations: int, hardware: Hardware
) -> float:
    """Seconds to bring all weights to each of some replicas, link-bound."""
    total = num_parameters(architecture) * _BYTES_PER_ELEMENT
    return (
        hardware.call_overhead_seconds + total * num_destinations / hardware.link_bytes_per_second
    )
