"""Bytes on one device: weights, optimizer, activations, caches.

Resident bytes stay while the plan is in force; active bytes only while a call runs. Activations
follow Korthikanti et al. (arXiv 2205.05198, section 4), counted for gated and grouped models:
the inputs of every product and of the activation function. 1F1B holds as many micro-batches on
the first stage as there are stages (section 4.2.3 there). With full recomputation only each
layer's input stays, and one layer at a time is whole. Optimizer states are sharded over the
data ranks (ZeRO 1, Rajbhandari et al., 1910.02054, section 5.1).
"""

from realloc.core.model import Head, ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.choices import GradientReduction
from realloc.cost.layers import Tokens
from realloc.cost.model_size import (
    embedding_parameters,
    mlp_matrices,
    num_parameters,
    stage_expert_parameters,
    stage_parameters,
)
from realloc.cost.training import TrainingStyle

_MOMENT_BYTES = 8
"""Two float32 moments of Adam per parameter."""
_MASTER_BYTES = 4
"""A float32 weight beside a 16-bit one; float32 weights are their own."""
_LOGIT_BYTES = 8
"""Float32 logits and their gradient or exponentials per vocabulary entry."""


def weight_bytes(
    architecture: ModelArchitecture, strategy: ParallelStrategy, element_bytes: int
) -> float:
    """Weights on a device of the fullest stage."""
    return element_bytes * stage_parameters(
        architecture,
        tensor=strategy.tensor,
        pipeline=strategy.pipeline,
        expert=strategy.expert,
    )


def optimizer_bytes(
    architecture: ModelArchitecture, strategy: ParallelStrategy, style: TrainingStyle
) -> float:
    """Master weights and moments on a device: a share of its data and context ranks' where the
    optimizer is sharded; experts have fewer replicas to share them."""
    master = _MASTER_BYTES if style.element_bytes < _MASTER_BYTES else 0
    shards = optimizer_shards(architecture, strategy, style)
    return (_MOMENT_BYTES + master) * shards


def optimizer_shards(
    architecture: ModelArchitecture, strategy: ParallelStrategy, style: TrainingStyle
) -> float:
    """Parameters of the fullest stage that one rank steps."""
    parameters = weight_bytes(architecture, strategy, 1)
    if style.reduction is GradientReduction.AFTER:
        return parameters
    experts = stage_expert_parameters(
        architecture, tensor=strategy.tensor, pipeline=strategy.pipeline, expert=strategy.expert
    )
    replicas = strategy.data * strategy.context
    return (parameters - experts) / replicas + experts / (replicas / strategy.expert)


def gradient_bytes(
    architecture: ModelArchitecture, strategy: ParallelStrategy, style: TrainingStyle
) -> float:
    """The gradient buffer of a device."""
    return style.gradient_bytes * weight_bytes(architecture, strategy, 1)


def training_activation_bytes(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    num_micro_batches: int,
    style: TrainingStyle,
    *,
    selected_share: float = 1.0,
) -> float:
    """Activations on the first stage at its fullest, the logits of the last, and one weight's
    gradient before it is added to the buffer.

    Args:
        selected_share: of the tokens, those whose logits are computed.
    """
    layers = -(-architecture.num_layers // strategy.pipeline)
    held: float = min(strategy.pipeline, num_micro_batches)
    if strategy.virtual_pipeline > 1:
        chunks = strategy.pipeline * strategy.virtual_pipeline
        held *= 1 + (strategy.pipeline - 1) / chunks
    layer = _layer_bytes(architecture, strategy, micro_batch, style)
    if style.recompute:
        tokens = micro_batch.count / strategy.context
        inputs = style.element_bytes * tokens * architecture.hidden_size
        if style.sequence_parallel:
            inputs /= strategy.tensor
        held_bytes = held * layers * inputs + layer
    else:
        held_bytes = held * layers * layer
    logits = _logit_bytes(architecture, strategy, selected_share * micro_batch.count)
    alone = held_bytes + logits if strategy.pipeline == 1 else max(held_bytes, logits)
    return alone + style.element_bytes * _largest_weight(architecture, strategy)


def inference_activation_bytes(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    style: TrainingStyle,
    *,
    selected_share: float = 1.0,
) -> float:
    """Of one layer what lives at once, at its feed-forward block, or else the logits."""
    layer = _passing_bytes(architecture, strategy, micro_batch.count, style.element_bytes)
    return max(layer, _logit_bytes(architecture, strategy, selected_share * micro_batch.count))


def cache_bytes_per_token(
    architecture: ModelArchitecture, tensor: int, element_bytes: int
) -> float:
    """Keys and values of one token on one tensor rank; heads beyond the rank count repeat."""
    heads = max(1.0, architecture.num_key_value_heads / tensor)
    return 2.0 * element_bytes * architecture.num_layers * heads * architecture.head_dim


def total_weight_bytes(architecture: ModelArchitecture, element_bytes: int) -> int:
    """One whole copy of the weights."""
    return element_bytes * num_parameters(architecture)


def _layer_bytes(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    micro_batch: Tokens,
    style: TrainingStyle,
) -> float:
    """What one layer keeps of one micro-batch for its backward pass.

    Of fused kernels: inputs of norms and products, queries, keys, values, attention's output.
    Plain torch keeps besides: both dropouts' masks, queries and keys before they are rotated,
    attention's output in another order, and keys and values repeated for their query heads.
    """
    a, t = architecture, strategy.tensor
    outside: float = 4 * a.hidden_size
    heads = 2 * (a.query_size + a.key_value_size)
    if not style.fused_kernels:
        outside += 2 * a.hidden_size
        heads += 2 * a.query_size + a.key_value_size
        if a.key_value_size < a.query_size:
            heads += 2 * (a.query_size - a.key_value_size)
    outside /= t if style.sequence_parallel else 1
    tokens = micro_batch.count / strategy.context
    return style.element_bytes * tokens * (outside + (heads + _wide(a, style)) / t)


def _wide(architecture: ModelArchitecture, style: TrainingStyle) -> float:
    """Elements that the feed-forward block keeps per token: what the down projection reads, and
    of a gate both its inputs; plain torch keeps the activation's output, too."""
    a = architecture
    width = a.intermediate_size
    if a.num_experts:
        width = a.expert_intermediate_size * a.experts_per_token
    if mlp_matrices(a) == 2:
        return 2 * width
    return (3 if style.fused_kernels else 4) * width


def _passing_bytes(
    architecture: ModelArchitecture, strategy: ParallelStrategy, tokens: float, element_bytes: int
) -> float:
    """Largest bytes that live at once while tokens pass a layer and nothing is kept."""
    a, t = architecture, strategy.tensor
    plain = TrainingStyle(element_bytes=element_bytes, fused_kernels=False)
    elements = 2 * a.hidden_size + _wide(a, plain) / t
    return element_bytes * tokens / strategy.context * elements


def _largest_weight(architecture: ModelArchitecture, strategy: ParallelStrategy) -> float:
    """Elements of a rank's largest matrix: an embedding's, or a gate with its up projection."""
    a = architecture
    width = a.expert_intermediate_size if a.num_experts else a.intermediate_size
    wide = (mlp_matrices(a) - 1) * a.hidden_size * width
    return max(embedding_parameters(a), wide) / strategy.tensor


def prefill_activation_bytes(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    rows: float,
    tokens: float,
    element_bytes: int,
) -> float:
    """One layer's activations of an engine's largest step, and the logits of its rows."""
    layer = _passing_bytes(architecture, strategy, tokens, element_bytes)
    return max(layer, _logit_bytes(architecture, strategy, rows))


def _logit_bytes(
    architecture: ModelArchitecture, strategy: ParallelStrategy, tokens: float
) -> float:
    columns = architecture.vocab_size / strategy.tensor
    tokens /= strategy.context
    return tokens * _LOGIT_BYTES * (columns if architecture.head is Head.LM else 1)
