"""Megatron-core 0.16.1's layout: tensor, pipeline, interleaved, expert and data parallel.

- ``linear_qkv``: rows interleaved by KV group, ``[q … q | k | v]`` per group; the fused rows
  are cut evenly, also where ``tp`` exceeds the number of groups.
- ``linear_fc1``: each rank holds ``[gate_r; up_r]``.
- Layers are split evenly over pipeline ranks and count from 0 in each model chunk. With
  ``v`` chunks per rank, chunk ``c`` of pipeline rank ``p`` holds the layers from
  ``c · L/v + p · L/(p·v)`` on, and names begin with ``c.`` as in ``ModuleList(chunks)``.
- With tied embeddings and several stages the last stage has a copy, ``output_layer.weight``.
- Experts are spread in equal runs over ``expert`` consecutive data ranks, each expert cut by
  the tensor degree (``expert_tensor_parallel_size`` = tp), named as in ``SequentialMLP``.
"""

from realloc.core.errors import InvalidInput
from realloc.core.layout import LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import (
    Part,
    layer_tensors,
    outer_tensors,
)
from realloc.reallocation.layouts.base import LayoutProvider, Member, by_name
from realloc.reallocation.layouts.pieces import LocalTensor, Rectangle, clip, divide, stack
from realloc.reallocation.layouts.tensor_parallel import (
    column_slice,
    padded_vocab_size,
    replicated,
    row_slices,
    vocabulary_slice,
)


class MegatronLayout(LayoutProvider):
    """Parameters of ``GPTModel`` (or of the ``ModuleList`` of its chunks)."""

    def check(self, architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
        super().check(architecture, strategy)
        chunks = strategy.pipeline * strategy.virtual_pipeline
        if strategy.virtual_pipeline > 1 and strategy.pipeline == 1:
            raise InvalidInput.at("strategy", f"{strategy} has model chunks but one stage")
        divide(architecture.num_layers, chunks, "the number of layers")

    def layer_stages(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[int, ...]:
        size = architecture.num_layers // (strategy.pipeline * strategy.virtual_pipeline)
        return tuple(layer // size % strategy.pipeline for layer in range(architecture.num_layers))

    def layer_prefixes(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[str, ...]:
        size = architecture.num_layers // (strategy.pipeline * strategy.virtual_pipeline)
        return tuple(
            f"{_chunk_prefix(strategy, layer // (size * strategy.pipeline))}"
            f"decoder.layers.{layer % size}."
            for layer in range(architecture.num_layers)
        )

    def layer(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy, slice_: int
    ) -> tuple[LocalTensor, ...]:
        expert_rank, rank = divmod(slice_, strategy.tensor)
        local_experts = 1
        if architecture.num_experts:
            local_experts = divide(architecture.num_experts, strategy.expert, "num_experts")
        first = expert_rank * local_experts
        named: list[tuple[str, Member]] = []
        for index, member in enumerate(layer_tensors(architecture)):
            if member.expert < 0:
                named.append((member.megatron, (index, member)))
            elif first <= member.expert < first + local_experts:
                name = member.megatron.replace("{expert}", str(member.expert - first))
                named.append((name, (index, member)))
        return tuple(
            _layer_tensor(architecture, name, members, strategy.tensor, rank)
            for name, members in by_name(named)
        )

    def outer(
        self,
        architecture: ModelArchitecture,
        strategy: ParallelStrategy,
        slice_: int,
        stage: int,
    ) -> tuple[LocalTensor, ...]:
        tp, rank = strategy.tensor, slice_ % strategy.tensor
        padded = padded_vocab_size(architecture, LayoutKind.MEGATRON, tp)
        first, last = stage == 0, stage == strategy.pipeline - 1
        first_chunk = _chunk_prefix(strategy, 0)
        last_chunk = _chunk_prefix(strategy, strategy.virtual_pipeline - 1)
        embedding, norm, *head = enumerate(outer_tensors(architecture))
        tensors = []
        if first:
            name = first_chunk + embedding[1].megatron
            tensors.append(vocabulary_slice(name, *embedding, padded, tp, rank))
        if last:
            tensors.append(replicated(last_chunk + norm[1].megatron, *norm))
        if last and (head or not first):
            # Tied: the stage that has no embedding keeps a copy for the logits.
            (output,) = head or [embedding]
            name = f"{last_chunk}output_layer.weight"
            if output[1].part is Part.VOCABULARY:
                tensors.append(vocabulary_slice(name, *output, padded, tp, rank))
            else:
                tensors.append(replicated(name, *output))
        return tuple(tensors)


def _chunk_prefix(strategy: ParallelStrategy, chunk: int) -> str:
    return f"{chunk}." if strategy.virtual_pipeline > 1 else ""


def _layer_tensor(
    architecture: ModelArchitecture, name: str, members: list[Member], tp: int, rank: int
) -> LocalTensor:
    index, member = members[0]
    match member.part:
        case Part.QUERY:
            return _fused_qkv(architecture, name, members, tp, rank)
        case Part.GATE | Part.EXPERT_GATE:
            return row_slices(name, members, tp, rank)
        case Part.INPUT_SPLIT | Part.EXPERT_DOWN:
            return column_slice(name, index, member, tp, rank)
        case Part.REPLICATED:
            return replicated(name, index, member)
    raise AssertionError(f"{member.part} cannot open a Megatron parameter")


def _fused_qkv(
    architecture: ModelArchitecture, name: str, members: list[Member], tp: int, rank: int
) -> LocalTensor:
    divide(architecture.num_attention_heads, tp, "num_attention_heads")
    groups, head = architecture.num_key_value_heads, architecture.head_dim
    if max(groups, tp) % min(groups, tp):
        raise InvalidInput.at("strategy", f"{groups} KV heads and tp {tp}: none divides the other")
    queries = architecture.query_size // groups
    (query, first), (key, _), (value, _) = members
    rows = [
        Rectangle(tensor, group * size, size, 0)
        for group in range(groups)
        for tensor, size in ((query, queries), (key, head), (value, head))
    ]
    local = divide(groups * (queries + 2 * head), tp, "the rows of the fused qkv projection")
    return stack(
        name,
        clip(rows, rank * local, (rank + 1) * local),
        width=first.tensor.cols,
        vector=len(first.tensor.shape) == 1,
    )
