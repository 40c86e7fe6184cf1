"""Seconds of training steps and of forward passes under a parallel strategy."""

from dataclasses import dataclass, replace

from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.choices import GradientReduction
from realloc.cost.hardware import Hardware
from realloc.cost.layers import (
    Attention,
    Execution,
    Passes,
    Tokens,
    embedding_passes,
    head_passes,
    layer_passes,
)
from realloc.cost.links import (
    Group,
    all_gather_seconds,
    all_reduce_seconds,
    group_of,
    message_seconds,
)
from realloc.cost.model_size import (
    embedding_parameters,
    stage_expert_parameters,
    stage_parameters,
)
from realloc.cost.pipeline import pipeline_seconds
from realloc.cost.ratios import Work

_ADAM_BYTES = 40.0
"""Memory traffic of a mixed-precision Adam step per parameter: the 16-bit gradient read,
unscaled to float32 and its norm taken (2 + 4 + 4), then gradient, both moments and the master
weight read, the last three written (28), the 16-bit weight written (2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStyle:
    """What the training framework does, beside the strategy."""

    element_bytes: int = 2
    gradient_bytes: int = 4
    """Of one gradient on the wire: Megatron-core reduces float32, DeepSpeed float16."""
    recompute: bool = False
    """Full recomputation: each layer runs forward again before its backward pass."""
    reduction: GradientReduction = GradientReduction.SHARDED
    attention: Attention = Attention.FLASH
    sequence_parallel: bool = False
    fused_kernels: bool = True
    """Layers run as fused kernels, which keep fewer activations; else plain torch."""
    selected_share: float = 1.0
    """Of the tokens, those whose logits are computed."""
    split_messages: bool = True
    """Tensor ranks send disjoint parts of the hidden states to the next stage (scatter/gather,
    arXiv 2104.04473, section 4.1)."""


def step_seconds(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    num_micro_batches: int,
    style: TrainingStyle,
    hardware: Hardware,
) -> float:
    """Seconds of one optimizer step: all micro-batches of a data rank, reduction, Adam."""
    execution = _execution(strategy, style)
    stages = _stage_passes(architecture, strategy, micro_batch, execution, style, hardware)
    through = pipeline_seconds(
        [stage.forward + stage.backward for stage in stages],
        num_micro_batches,
        message_seconds=_message(architecture, strategy, micro_batch, style, hardware),
        virtual_stages=strategy.virtual_pipeline,
    )
    hidden_behind = 0.0
    if style.reduction is GradientReduction.OVERLAPPED:
        hidden_behind = max(stage.backward for stage in stages)
    reduction = _reduction_seconds(architecture, strategy, style, hardware)
    update = _update_seconds(architecture, strategy, style, hardware)
    return through + max(0.0, reduction - hidden_behind) + update


def forward_seconds(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    num_micro_batches: int,
    style: TrainingStyle,
    hardware: Hardware,
) -> float:
    """Seconds of forward passes only, over all micro-batches of a data rank."""
    execution = _execution(strategy, style)
    stages = _stage_passes(architecture, strategy, micro_batch, execution, style, hardware)
    return pipeline_seconds(
        [stage.forward for stage in stages],
        num_micro_batches,
        message_seconds=_message(architecture, strategy, micro_batch, style, hardware),
        passes=1,
    )


def _execution(strategy: ParallelStrategy, style: TrainingStyle) -> Execution:
    return Execution(
        tensor=strategy.tensor,
        expert=strategy.expert,
        context=strategy.context,
        element_bytes=style.element_bytes,
        attention=style.attention,
        sequence_parallel=style.sequence_parallel and strategy.tensor > 1,
    )


def _stage_passes(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    execution: Execution,
    style: TrainingStyle,
    hardware: Hardware,
) -> list[Passes]:
    """One micro-batch on each stage; recomputation counts as backward."""
    layer = layer_passes(architecture, micro_batch, execution, hardware)
    if style.recompute:
        layer = Passes(forward=layer.forward, backward=layer.backward + layer.forward)
    fewest, rest = divmod(architecture.num_layers, strategy.pipeline)
    stages = [
        layer.scaled(fewest + 1 if stage < rest else fewest) for stage in range(strategy.pipeline)
    ]
    embedding = embedding_passes(architecture, micro_batch, execution, hardware)
    selected = replace(micro_batch, length=micro_batch.length * style.selected_share)
    head = head_passes(architecture, selected, execution, hardware)
    stages[0] = _sum(stages[0], embedding)
    stages[-1] = _sum(stages[-1], head)
    return stages


def _sum(first: Passes, second: Passes) -> Passes:
    return Passes(forward=first.forward + second.forward, backward=first.backward + second.backward)


def _message(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    style: TrainingStyle,
    hardware: Hardware,
) -> float:
    """Seconds of the hidden states of one micro-batch to the next stage."""
    if strategy.pipeline == 1:
        return 0.0
    hidden = micro_batch.count / strategy.context * architecture.hidden_size * style.element_bytes
    if style.split_messages:
        hidden /= strategy.tensor
    return message_seconds(
        hidden,
        crosses_nodes=strategy.num_ranks > hardware.devices_per_node,
        hardware=hardware,
        # Of stages smaller than a node only the last one sends to the next node.
        senders_per_node=min(strategy.num_ranks // strategy.pipeline, hardware.devices_per_node),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replicated:
    """Parameters of a rank's stage and the ranks that hold the same: they sum gradients."""

    parameters: float
    group: Group


def _replicated(
    architecture: ModelArchitecture, strategy: ParallelStrategy, hardware: Hardware
) -> list[_Replicated]:
    """A stage's parameters: those that all data and context ranks hold, and the experts."""
    degrees = {
        "tensor": strategy.tensor,
        "pipeline": strategy.pipeline,
        "expert": strategy.expert,
    }
    experts = stage_expert_parameters(architecture, **degrees)
    replicas, tensor, expert = strategy.data * strategy.context, strategy.tensor, strategy.expert
    dense = _Replicated(
        parameters=stage_parameters(architecture, **degrees) - experts,
        group=group_of(replicas, tensor, hardware),
    )
    if not experts:
        return [dense]
    group = group_of(replicas // expert, tensor * expert, hardware)
    return [dense, _Replicated(parameters=experts, group=group)]


def _reduction_seconds(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    style: TrainingStyle,
    hardware: Hardware,
) -> float:
    seconds = 0.0
    for part in _replicated(architecture, strategy, hardware):
        gradients = part.parameters * style.gradient_bytes
        if style.reduction is GradientReduction.AFTER:
            seconds += all_reduce_seconds(part.group, gradients, hardware)
        else:
            weights = part.parameters * style.element_bytes
            seconds += all_gather_seconds(part.group, gradients, hardware)
            seconds += all_gather_seconds(part.group, weights, hardware)
    if architecture.tied_embeddings and strategy.pipeline > 1:
        # The first and the last stage hold one embedding and sum its gradients.
        stage = strategy.num_ranks // strategy.pipeline
        ends = Group(
            size=2,
            num_nodes=1 if strategy.num_ranks <= hardware.devices_per_node else 2,
            groups_per_node=min(stage, hardware.devices_per_node),
        )
        shared = embedding_parameters(architecture) / strategy.tensor * style.gradient_bytes
        seconds += all_reduce_seconds(ends, shared, hardware)
    return seconds


def _update_seconds(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    style: TrainingStyle,
    hardware: Hardware,
) -> float:
    stepped = sum(
        part.parameters / (1 if style.reduction is GradientReduction.AFTER else part.group.size)
        for part in _replicated(architecture, strategy, hardware)
    )
    return update_seconds(stepped, style.element_bytes, hardware)


def update_seconds(parameters: float, element_bytes: int, hardware: Hardware) -> float:
    """Seconds of Adam on so many parameters."""
    moved = _ADAM_BYTES * parameters / hardware.memory_bytes_per_second
    ratio = hardware.ratios.ratio(Work.STEP, element_bytes, parameters, 1.0)
    return (moved + hardware.efficiency.step_seconds) * ratio
