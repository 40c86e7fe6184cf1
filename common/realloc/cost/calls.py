"""Seconds and bytes of one function call under one strategy.

The parts are derived in docs/cost-model.md: `training` and `layers` for passes and steps,
`generation` and `lengths` for rollouts, `memory` for bytes.
"""

import math
from dataclasses import dataclass, field, replace

from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.choices import CallChoices
from realloc.cost.generation import Replica, generation_seconds
from realloc.cost.hardware import Hardware
from realloc.cost.layers import Tokens
from realloc.cost.lengths import ResponseLengths
from realloc.cost.links import host_copy_seconds, network_bytes_per_second
from realloc.cost.memory import (
    cache_bytes_per_token,
    gradient_bytes,
    inference_activation_bytes,
    optimizer_bytes,
    prefill_activation_bytes,
    total_weight_bytes,
    training_activation_bytes,
    weight_bytes,
)
from realloc.cost.memory_parts import MemoryParts
from realloc.cost.model_size import num_parameters
from realloc.cost.training import TrainingStyle, forward_seconds, step_seconds
from realloc.dataflow.graph import CallKind

__all__ = [
    "CallCost",
    "Workload",
    "estimate_call",
    "estimate_reallocation_seconds",
    "num_parameters",
]

_FIELD_BYTES = 24
"""Of one token that moves between calls: its id (8) and four float32 columns."""
_DEFAULT = CallChoices()
_CACHE_SHARE = 0.9
"""Of a device that an engine fills with weights and cache (vLLM's default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a call has to do in one iteration."""

    num_rows: int
    prompt_tokens: float
    """Mean tokens of a prompt, or of a whole row where nothing is generated."""
    response_tokens: float
    """Most tokens of a response."""
    mean_response_tokens: float = 0.0
    """Mean tokens of a response; 0 where every response is taken to reach the limit."""
    num_steps: int = 1
    """Optimizer steps of a train call."""
    num_epochs: int = 1
    """Passes over the rows in a train call; divides `num_steps`."""
    max_tokens_per_micro_batch: int = 16_384
    element_bytes: int = 4
    """Of weights and activations."""

    @property
    def tokens_per_row(self) -> float:
        return self.prompt_tokens + (self.mean_response_tokens or self.response_tokens)

    @property
    def selected_share(self) -> float:
        """Share of the tokens whose logits are computed: the response, where there is one."""
        return (self.tokens_per_row - self.prompt_tokens) / self.tokens_per_row or 1.0

    @property
    def num_tokens(self) -> float:
        """Of all rows, once."""
        return self.num_rows * self.tokens_per_row

    @property
    def lengths(self) -> ResponseLengths:
        limit = max(1, int(self.response_tokens))
        return ResponseLengths(mean=self.mean_response_tokens or limit, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """What a call takes."""

    seconds: float
    resident_bytes: int
    """On each device while the plan is in force: weights, optimizer states."""
    active_bytes: int
    """Further bytes while the call runs: activations, gradients, cache."""
    parts: MemoryParts = field(default_factory=MemoryParts)
    """What resident and active bytes are for."""
    host_bytes: int = 0
    """In the host's memory for each device between calls, where something is offloaded."""

    @property
    def peak_bytes(self) -> int:
        """Largest memory of one device for this call alone."""
        return self.resident_bytes + self.active_bytes


def estimate_call(
    kind: CallKind,
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
    *,
    choices: CallChoices = _DEFAULT,
    memory_bytes: int | None = None,
) -> CallCost:
    """Seconds and bytes of a call.

    Args:
        choices: of a train or inference call; generation has none.
        memory_bytes: of one device, where it is not the hardware's; a generation engine fills
            what is left of it with its cache, as far as the rows need.
    """
    if kind is CallKind.GENERATE:
        room = hardware.memory_bytes if memory_bytes is None else memory_bytes
        return _generate(architecture, strategy, workload, hardware, room)
    if kind is CallKind.TRAIN:
        return _train(architecture, strategy, workload, hardware, choices)
    return _infer(architecture, strategy, workload, hardware, choices)


def estimate_reallocation_seconds(
    architecture: ModelArchitecture,
    num_destinations: int,
    hardware: Hardware,
    *,
    element_bytes: int = 4,
) -> float:
    """Seconds to bring all weights to each of some replicas, link-bound."""
    total = total_weight_bytes(architecture, element_bytes)
    link = hardware.node_link
    return (
        hardware.call_overhead_seconds
        + link.latency_seconds
        + total * num_destinations / link.bytes_per_second
    )


def batch_seconds(workload: Workload, hardware: Hardware) -> float:
    """Seconds to bring a call its rows over one node's network."""
    return workload.num_tokens * _FIELD_BYTES / network_bytes_per_second(hardware)


def _style(workload: Workload, choices: CallChoices, hardware: Hardware) -> TrainingStyle:
    return TrainingStyle(
        fused_kernels=hardware.fused_kernels,
        element_bytes=workload.element_bytes,
        recompute=choices.recompute,
        reduction=choices.reduction,
        sequence_parallel=choices.sequence_parallel,
        selected_share=workload.selected_share,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A data rank's rows, packed."""

    micro_batch: Tokens
    num_micro_batches: int


def _split(workload: Workload, strategy: ParallelStrategy, rows: float) -> _Split:
    """Rows of one data rank in micro-batches of at most so many tokens, at least a row each."""
    rows_of_rank = max(1.0, rows / strategy.data)
    at_once = max(1.0, workload.max_tokens_per_micro_batch // workload.tokens_per_row)
    number = math.ceil(rows_of_rank / at_once)
    return _Split(
        micro_batch=Tokens(rows=rows_of_rank / number, length=workload.tokens_per_row),
        num_micro_batches=number,
    )


def _train(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
    choices: CallChoices,
) -> CallCost:
    style = _style(workload, choices, hardware)
    rows = workload.num_rows * workload.num_epochs / workload.num_steps
    split = _split(workload, strategy, rows)
    step = step_seconds(
        architecture, strategy, split.micro_batch, split.num_micro_batches, style, hardware
    )
    resident = weight_bytes(architecture, strategy, style.element_bytes)
    gradients = gradient_bytes(architecture, strategy, style)
    states = optimizer_bytes(architecture, strategy, style)
    active = training_activation_bytes(
        architecture,
        strategy,
        split.micro_batch,
        split.num_micro_batches,
        style,
        selected_share=workload.selected_share,
    )
    frame = frame_seconds(
        split.num_micro_batches,
        rows / strategy.data,
        hardware,
        target_tokens=workload.response_tokens,
    )
    seconds = workload.num_steps * (step + frame)
    if choices.offload:
        # In before the first step and out after the last; gradients live within the call.
        seconds += 2 * host_copy_seconds(states, hardware)
        active += gradients + states
    else:
        resident += gradients + states
    parts = MemoryParts(
        weights=math.ceil(resident if choices.offload else resident - gradients - states),
        gradients=math.ceil(gradients),
        optimizer=math.ceil(states),
        activations=math.ceil(active - (gradients + states if choices.offload else 0)),
    )
    return CallCost(
        seconds=_framed(seconds, workload, hardware),
        resident_bytes=math.ceil(resident),
        active_bytes=math.ceil(active),
        parts=parts,
        host_bytes=math.ceil(states) if choices.offload else 0,
    )


def _infer(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
    choices: CallChoices,
) -> CallCost:
    style = replace(_style(workload, choices, hardware), recompute=False)
    split = _split(workload, strategy, workload.num_rows)
    seconds = forward_seconds(
        architecture, strategy, split.micro_batch, split.num_micro_batches, style, hardware
    )
    rows = workload.num_rows / strategy.data
    seconds += frame_seconds(split.num_micro_batches, rows, hardware)
    active = inference_activation_bytes(
        architecture,
        strategy,
        split.micro_batch,
        style,
        selected_share=workload.selected_share,
    )
    weights = weight_bytes(architecture, strategy, style.element_bytes)
    parts = MemoryParts(weights=math.ceil(weights), activations=math.ceil(active))
    if choices.offload:  # frozen weights come in and are dropped: the host's copy stays true
        seconds += host_copy_seconds(weights, hardware)
        active += weights
    return CallCost(
        seconds=_framed(seconds, workload, hardware),
        resident_bytes=0 if choices.offload else math.ceil(weights),
        active_bytes=math.ceil(active),
        parts=parts,
        host_bytes=math.ceil(weights) if choices.offload else 0,
    )


def _generate(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    workload: Workload,
    hardware: Hardware,
    memory_bytes: int,
) -> CallCost:
    replica = Replica(
        architecture=architecture,
        tensor=strategy.tensor,
        element_bytes=workload.element_bytes,
        hardware=hardware,
    )
    rows = math.ceil(workload.num_rows / strategy.data)
    weights = weight_bytes(architecture, strategy, workload.element_bytes)
    # A shadow copy of the weights stands beside the live ones while they are replaced.
    per_token = cache_bytes_per_token(architecture, strategy.tensor, workload.element_bytes)
    row = per_token * workload.tokens_per_row
    together = min(rows, hardware.decode_rows)
    tokens = min(together * workload.prompt_tokens, hardware.prefill_tokens)
    activations = prefill_activation_bytes(
        architecture, strategy, together, max(tokens, together), workload.element_bytes
    )
    room = _CACHE_SHARE * (memory_bytes - hardware.reserved_bytes) - 2 * weights - activations
    cache = min(rows * row, max(room, row))
    seconds = generation_seconds(replica, rows, workload.prompt_tokens, workload.lengths, cache)
    return CallCost(
        seconds=_framed(seconds, workload, hardware),
        resident_bytes=math.ceil(2 * weights),
        active_bytes=math.ceil(cache + activations),
        parts=MemoryParts(
            weights=math.ceil(weights),
            shadow=math.ceil(weights),
            cache=math.ceil(cache),
            activations=math.ceil(activations),
        ),
    )


def frame_seconds(
    num_micro_batches: int, rows: float, hardware: Hardware, *, target_tokens: float = 0.0
) -> float:
    """Host time of the trainer's code around its passes, for a data rank's rows.

    Args:
        target_tokens: of the longest response whose advantages are computed; 0 for none.
    """
    reach = hardware.efficiency
    return (
        num_micro_batches * reach.frame_seconds
        + rows * reach.frame_row_seconds
        + target_tokens * reach.target_token_seconds
    )


def _framed(seconds: float, workload: Workload, hardware: Hardware) -> float:
    """With what surrounds a call: dispatch and the rows it pulls."""
    return hardware.call_overhead_seconds + batch_seconds(workload, hardware) + seconds
