"""Seconds of one transformer layer, the embedding and the head over packed tokens.

A pass is matrix products at a fraction of the peak, elementwise kernels at a fraction of the
memory's bandwidth, and the host's launches, which run beside the device: a pass takes about the
longer of the two. Products cost 2 m n k flops forward and twice that backward (Narayanan et al.,
arXiv 2104.04473, appendix). Elementwise kernels are counted in elements of hidden size read or
written, kernel by kernel: norms, residuals, biases, activation, and for unfused attention the
probabilities (the kernels are those behind Korthikanti et al., arXiv 2205.05198, figure 2).
A tensor-parallel layer reduces its hidden states twice per pass (Shoeybi et al., 1909.08053,
section 3); with sequence parallelism a gather and a scatter move as many bytes.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from realloc.core.model import Head, ModelArchitecture
from realloc.cost.hardware import Hardware
from realloc.cost.links import (
    Group,
    all_reduce_seconds,
    all_to_all_seconds,
    group_of,
    message_seconds,
)
from realloc.cost.model_size import embedding_parameters, expert_parameters, mlp_matrices
from realloc.cost.ratios import Work

_LAUNCH_OVERLAP = 3.0
"""Exponent p of (device^p + host^p)^(1/p): at equal times a pass takes 1.26 of either."""
_HEAD_FORWARD_SHARE = 4.0
"""A loss and its backward pass are several times as many kernels as log-probabilities alone."""
_FUSED_SOFTMAX_LENGTH = 2048
_FUSED_SOFTMAX_BATCH = 4
"""Megatron's fused softmax takes rows up to this length, batches that this divides."""


class Attention(Enum):
    """How attention is computed."""

    FLASH = "flash"
    """Causal half only, probabilities never in memory (Dao et al., arXiv 2205.14135)."""
    UNFUSED = "unfused"
    """Two batched products over the whole square, probabilities in memory: Megatron of 2022."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one micro-batch holds."""

    rows: float
    """Sequences."""
    length: float
    """Mean tokens per sequence."""

    @property
    def count(self) -> float:
        return self.rows * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the layers of a model run: who shares them, in which numbers."""

    tensor: int = 1
    expert: int = 1
    context: int = 1
    element_bytes: int = 2
    attention: Attention = Attention.FLASH
    sequence_parallel: bool = False
    """Norms and residuals split over the tensor ranks, too."""

    def local_count(self, tokens: Tokens) -> float:
        """Tokens of a micro-batch on one rank: context ranks share each sequence evenly."""
        return tokens.count / self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Seconds of one micro-batch, its collectives included."""

    forward: float
    backward: float
    """Without recomputation."""

    def scaled(self, factor: float) -> "Passes":
        """So many times over."""
        return Passes(forward=self.forward * factor, backward=self.backward * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """`batch` products of [m, k] and [k, n]."""

    m: float
    n: float
    k: float
    batch: float = 1


def layer_passes(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution, hardware: Hardware
) -> Passes:
    """Seconds of one layer."""
    products = _layer_products(architecture, tokens, execution)
    forward = sum(_product_seconds(p, execution, hardware) for p in products)
    backward = sum(_backward_seconds(p, execution, hardware) for p in products)
    element = execution.element_bytes / _bandwidth(hardware)
    moved = _layer_elements(architecture, tokens, execution)
    extra = _reduced(architecture, tokens, execution, hardware)
    ring = ring_passes(architecture, tokens, execution, hardware)
    shape = layer_shape(architecture, execution)
    launch = hardware.efficiency
    unfused = 0.0 if _fused(architecture, tokens, execution) else launch.unfused_softmax_seconds
    forward += moved.forward * element
    backward += moved.backward * element
    forward = _beside(forward, launch.forward_launch_seconds + unfused)
    backward = _beside(backward, launch.backward_launch_seconds + unfused)
    size = tokens.rows, tokens.length / execution.context
    forward *= hardware.ratios.ratio(Work.LAYER_FORWARD, shape, *size)
    backward *= hardware.ratios.ratio(Work.LAYER_BACKWARD, shape, *size)
    return Passes(forward=forward + extra + ring.forward, backward=backward + extra + ring.backward)


def layer_shape(architecture: ModelArchitecture, execution: Execution) -> Hashable:
    """What a rank's kernels of a layer look like: equal for a model on one tensor rank of t and
    for the model of a t-th of its heads and widths on one."""
    a, t = architecture, execution.tensor
    return (
        a.hidden_size,
        a.query_size / t,
        max(a.key_value_size / t, a.head_dim),
        a.head_dim,
        a.intermediate_size / t,
        mlp_matrices(a),
        (a.num_experts / execution.expert, a.experts_per_token, a.expert_intermediate_size / t)
        if a.num_experts
        else (),
        execution.element_bytes,
    )


def head_shape(architecture: ModelArchitecture, execution: Execution) -> Hashable:
    """What a rank's kernels of the head look like."""
    columns = -(-architecture.vocab_size // execution.tensor)
    return (
        architecture.hidden_size,
        columns if architecture.head is Head.LM else 1,
        execution.element_bytes,
    )


def ring_passes(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution, hardware: Hardware
) -> Passes:
    """Seconds by which a ring's messages outlast the attention that hides them.

    Each of c context ranks meets the keys and values of the others in c − 1 steps, and sends on
    what it has while it computes with it; backward their gradients travel, too (Liu et al.,
    arXiv 2310.01889, section 3). The causal halves are balanced over the ranks, as in Megatron.
    """
    a, c = architecture, execution.context
    if c == 1:
        return Passes(forward=0.0, backward=0.0)
    heads = max(a.key_value_size / execution.tensor, a.head_dim)
    block = 2 * execution.local_count(tokens) * heads * execution.element_bytes
    message = message_seconds(
        block,
        crosses_nodes=execution.tensor * c > hardware.devices_per_node,
        hardware=hardware,
        senders_per_node=min(execution.tensor, hardware.devices_per_node),
    )
    products = _attention_products(a, tokens, execution)
    forward = sum(_product_seconds(p, execution, hardware) for p in products) / c
    backward = sum(_backward_seconds(p, execution, hardware) for p in products) / c
    return Passes(
        forward=(c - 1) * max(0.0, message - forward),
        backward=(c - 1) * max(0.0, 2 * message - backward),
    )


def head_passes(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution, hardware: Hardware
) -> Passes:
    """Seconds of the projection to the vocabulary, or to a value, and of its loss."""
    a, fixed = architecture, hardware.efficiency.head_seconds
    n = execution.local_count(tokens)
    width = _padded_vocabulary(a, execution.tensor) if a.head is Head.LM else 1.0
    product = _Product(m=n, n=width, k=a.hidden_size)
    per_byte = 1.0 / _bandwidth(hardware)
    group = tensor_group(execution, hardware)
    # Maximum, sum and target logit of each token in float32; the hidden states' gradient.
    statistics = 3 * all_reduce_seconds(group, 4 * n, hardware) if a.head is Head.LM else 0.0
    hidden = all_reduce_seconds(group, execution.element_bytes * n * a.hidden_size, hardware)
    weights = 3 * execution.element_bytes * width * a.hidden_size
    # Logits to float32, shifted, exponentiated, summed, divided; and back: some 50 bytes each.
    forward = _product_seconds(product, execution, hardware) + 30 * n * width * per_byte
    backward = _backward_seconds(product, execution, hardware)
    backward += (20 * n * width + weights) * per_byte
    forward = _beside(forward, fixed / _HEAD_FORWARD_SHARE)
    backward = _beside(backward, fixed)
    size, shape = (tokens.rows, tokens.length / execution.context), head_shape(a, execution)
    both = (forward + backward) * hardware.ratios.ratio(Work.HEAD_TRAIN, shape, *size)
    forward *= hardware.ratios.ratio(Work.HEAD_FORWARD, shape, *size)
    return Passes(forward=forward + statistics + hidden, backward=max(0.0, both - forward))


def embedding_passes(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution, hardware: Hardware
) -> Passes:
    """Seconds of the lookup, and of the dense gradient that its backward pass adds."""
    hidden = execution.local_count(tokens) * architecture.hidden_size * execution.element_bytes
    gradient = 3 * execution.element_bytes * embedding_parameters(architecture) / execution.tensor
    reduced = all_reduce_seconds(tensor_group(execution, hardware), hidden, hardware)
    return Passes(
        forward=6 * hidden / _bandwidth(hardware) + reduced,
        backward=(9 * hidden + gradient) / _bandwidth(hardware),
    )


def tensor_group(execution: Execution, hardware: Hardware) -> Group:
    """The ranks that share a layer."""
    return group_of(execution.tensor, 1, hardware)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elements:
    forward: float
    backward: float


def _layer_products(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution
) -> list[_Product]:
    a, n, t = architecture, execution.local_count(tokens), execution.tensor
    query, key_value = a.query_size / t, max(a.key_value_size / t, a.head_dim)
    products = [
        _Product(m=n, n=query + 2 * key_value, k=a.hidden_size),
        _Product(m=n, n=a.hidden_size, k=query),
    ]
    if a.num_experts:
        width = a.expert_intermediate_size / t
        routed, local = n * a.experts_per_token, max(1.0, a.num_experts / execution.expert)
        sizes, batch = routed / local, local
    else:
        width, sizes, batch = a.intermediate_size / t, n, 1.0
    ups = mlp_matrices(a) - 1
    products.append(_Product(m=sizes, n=ups * width, k=a.hidden_size, batch=batch))
    products.append(_Product(m=sizes, n=a.hidden_size, k=width, batch=batch))
    return products + _attention_products(a, tokens, execution)


def _attention_products(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution
) -> list[_Product]:
    a, s = architecture, tokens.length
    heads = tokens.rows * a.num_attention_heads / execution.tensor
    if execution.attention is Attention.FLASH:
        heads /= 2
    own = s / execution.context
    return [
        _Product(m=own, n=s, k=a.head_dim, batch=heads),
        _Product(m=own, n=a.head_dim, k=s, batch=heads),
    ]


def _layer_elements(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution
) -> _Elements:
    """Elements that a layer's other kernels read or write."""
    a, n, t = architecture, execution.local_count(tokens), execution.tensor
    hidden = n * a.hidden_size / (t if execution.sequence_parallel else 1)
    heads = n * (a.query_size + 2 * a.key_value_size) / t
    width = a.intermediate_size
    if a.num_experts:
        width = a.expert_intermediate_size * a.experts_per_token
    wide = n * width * (mlp_matrices(a) - 1) / t
    weights = (
        2 * a.hidden_size * (a.query_size + a.key_value_size)
        + expert_parameters(a) * max(1.0, a.num_experts / execution.expert)
    ) / t
    forward = 11 * hidden + 2 * heads + 2 * wide
    backward = 12 * hidden + 2 * heads + 3 * wide + 3 * weights
    if execution.attention is Attention.UNFUSED:
        # Softmax and dropout over the probabilities; unfused, in float32 and step by step.
        squares = n * tokens.length * a.num_attention_heads / t
        fused = _fused(a, tokens, execution)
        forward += squares * (4.5 if fused else 20.5)
        backward += squares * (5.5 if fused else 14.5)
    return _Elements(forward=forward, backward=backward)


def _reduced(
    architecture: ModelArchitecture, tokens: Tokens, execution: Execution, hardware: Hardware
) -> float:
    """Seconds of one pass's collectives: attention's and the feed-forward block's."""
    a = architecture
    hidden = execution.element_bytes * execution.local_count(tokens) * a.hidden_size
    seconds = 2 * all_reduce_seconds(tensor_group(execution, hardware), hidden, hardware)
    if a.num_experts and execution.expert > 1:
        group = group_of(execution.expert, execution.tensor, hardware)
        seconds += 2 * all_to_all_seconds(group, hidden * a.experts_per_token, hardware)
    return seconds


def _fused(architecture: ModelArchitecture, tokens: Tokens, execution: Execution) -> bool:
    if execution.attention is Attention.FLASH:
        return True
    batch = int(tokens.rows) * architecture.num_attention_heads // execution.tensor
    return tokens.length <= _FUSED_SOFTMAX_LENGTH and batch % _FUSED_SOFTMAX_BATCH == 0


def _product_seconds(product: _Product, execution: Execution, hardware: Hardware) -> float:
    p, reach = product, hardware.efficiency
    speed = hardware.peak_flops(execution.element_bytes) * reach.matrix
    if p.n > 1 and any(size % 8 for size in (p.n, p.k)):
        speed *= reach.unaligned
    moved = execution.element_bytes * p.batch * (p.m * p.k + p.k * p.n + p.m * p.n)
    return max(2 * p.batch * p.m * p.n * p.k / speed, moved / _bandwidth(hardware))


def _backward_seconds(product: _Product, execution: Execution, hardware: Hardware) -> float:
    p = product
    left = _Product(m=p.m, n=p.k, k=p.n, batch=p.batch)
    right = _Product(m=p.n, n=p.k, k=p.m, batch=p.batch)
    return _product_seconds(left, execution, hardware) + _product_seconds(
        right, execution, hardware
    )


def _padded_vocabulary(architecture: ModelArchitecture, tensor: int) -> float:
    """Columns of a rank's head: shared vocabularies are padded to multiples of 128."""
    if tensor == 1:
        return architecture.vocab_size
    return -(-architecture.vocab_size // (128 * tensor)) * 128


def _bandwidth(hardware: Hardware) -> float:
    return hardware.memory_bytes_per_second * hardware.efficiency.memory


def _beside(device: float, host: float) -> float:
    longer, shorter = max(device, host), min(device, host)
    ratio = math.pow(shorter / longer, _LAUNCH_OVERLAP)
    return longer * math.pow(1.0 + ratio, 1.0 / _LAUNCH_OVERLAP)
