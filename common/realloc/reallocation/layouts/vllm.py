"""vLLM 0.32's layout: tensor, pipeline and expert parallel; data ranks are replicas.

- ``qkv_proj``: rows ``[q_r; k_r; v_r]``; where ``tp`` exceeds the KV heads, rank ``r`` holds
  KV head ``r // (tp // num_kv_heads)``.
- ``gate_up_proj``: ``[gate_r; up_r]``; ``w13_weight`` [experts, 2·ffn_r, hidden] the same per
  expert, ``w2_weight`` [experts, hidden, ffn_r].
- Expert parallelism (``expert`` > 1): vLLM's group of ``expert`` data ranks × ``tensor`` ranks
  shares the experts, each expert whole; the first groups hold one more if they don't divide.
- Layers keep their global numbers; a remainder of layers goes to the stages before the last
  (``get_pp_indices``). With tied embeddings the last stage holds the embedding, too.
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
from realloc.reallocation.layouts.pieces import LocalTensor, Rectangle, divide, stack
from realloc.reallocation.layouts.tensor_parallel import (
    column_slice,
    padded_vocab_size,
    replicated,
    row_slices,
    vocabulary_slice,
)


class VllmLayout(LayoutProvider):
    """Parameters of vLLM's decoder models."""

    def check(self, architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
        super().check(architecture, strategy)
        if strategy.virtual_pipeline > 1:
            raise InvalidInput.at("strategy", f"is {strategy}; vLLM has no virtual pipeline")
        if strategy.context > 1:
            raise InvalidInput.at("strategy", f"is {strategy}; vLLM splits no sequences")

    def layer_stages(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[int, ...]:
        sizes = _stage_sizes(architecture.num_layers, strategy.pipeline)
        return tuple(stage for stage, size in enumerate(sizes) for _ in range(size))

    def layer(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy, slice_: int
    ) -> tuple[LocalTensor, ...]:
        tensors = list(enumerate(layer_tensors(architecture)))
        num_dense = sum(member.expert < 0 for _, member in tensors)
        dense = [(member.vllm, (index, member)) for index, member in tensors[:num_dense]]
        experts = tensors[num_dense:]
        rank = slice_ % strategy.tensor
        local = [
            _dense_tensor(architecture, name, members, strategy.tensor, rank)
            for name, members in by_name(dense)
        ]
        if experts:
            local.extend(_expert_tensors(architecture, strategy, experts, slice_))
        return tuple(local)

    def outer(
        self,
        architecture: ModelArchitecture,
        strategy: ParallelStrategy,
        slice_: int,
        stage: int,
    ) -> tuple[LocalTensor, ...]:
        tp, rank = strategy.tensor, slice_ % strategy.tensor
        padded = padded_vocab_size(architecture, LayoutKind.VLLM, tp)
        first, last = stage == 0, stage == strategy.pipeline - 1
        held = {
            "model.embed_tokens.weight": first or (last and architecture.tied_embeddings),
        }
        tensors = []
        for index, member in enumerate(outer_tensors(architecture)):
            if not held.get(member.vllm, last):
                continue
            if member.part is Part.VOCABULARY:
                tensors.append(vocabulary_slice(member.vllm, index, member, padded, tp, rank))
            else:
                tensors.append(replicated(member.vllm, index, member))
        return tuple(tensors)


def _stage_sizes(num_layers: int, stages: int) -> list[int]:
    """Layers of each stage, as vLLM's ``get_pp_indices`` deals them out."""
    if num_layers < stages:
        raise InvalidInput.at("strategy", f"{num_layers} layers are fewer than {stages} stages")
    sizes = [num_layers // stages] * stages
    for extra in range(2, num_layers % stages + 2):
        sizes[-extra] += 1
    return sizes


def _dense_tensor(
    architecture: ModelArchitecture, name: str, members: list[Member], tp: int, rank: int
) -> LocalTensor:
    index, member = members[0]
    match member.part:
        case Part.QUERY:
            return _fused_qkv(architecture, name, members, tp, rank)
        case Part.GATE:
            return row_slices(name, members, tp, rank)
        case Part.INPUT_SPLIT:
            return column_slice(name, index, member, tp, rank)
        case Part.REPLICATED:
            return replicated(name, index, member)
    raise AssertionError(f"{member.part} cannot open a vLLM parameter")


def _fused_qkv(
    architecture: ModelArchitecture, name: str, members: list[Member], tp: int, rank: int
) -> LocalTensor:
    divide(architecture.num_attention_heads, tp, "num_attention_heads")
    groups, head = architecture.num_key_value_heads, architecture.head_dim
    queries = architecture.query_size // tp
    if max(groups, tp) % min(groups, tp):
        raise InvalidInput.at("strategy", f"{groups} KV heads and tp {tp}: none divides the other")
    heads = max(groups // tp, 1)
    first_head = rank * heads if groups >= tp else rank // (tp // groups)
    (query, first), (key, _), (value, _) = members
    return stack(
        name,
        [
            Rectangle(query, rank * queries, queries, 0),
            Rectangle(key, first_head * head, heads * head, 0),
            Rectangle(value, first_head * head, heads * head, 0),
        ],
        width=first.tensor.cols,
        vector=len(first.tensor.shape) == 1,
    )


def _expert_tensors(
    architecture: ModelArchitecture,
    strategy: ParallelStrategy,
    experts: list[Member],
    slice_: int,
) -> tuple[LocalTensor, LocalTensor]:
    """``w13_weight`` and ``w2_weight`` of one slice."""
    if strategy.expert > 1:
        cuts, cut = 1, 0
        run, extra = divmod(architecture.num_experts, strategy.expert * strategy.tensor)
        first = slice_ * run + min(slice_, extra)
        last = first + run + (slice_ < extra)
    else:
        cuts, cut = strategy.tensor, slice_
        first, last = 0, architecture.num_experts
    hidden = architecture.hidden_size
    ffn = divide(architecture.expert_intermediate_size, cuts, "the experts' hidden size")
    per_expert = len(experts) // architecture.num_experts
    held = experts[first * per_expert : last * per_expert]
    downs = [index for index, member in held if member.part is Part.EXPERT_DOWN]
    gates_ups = [index for index, member in held if member.part is not Part.EXPERT_DOWN]
    w13, w2 = (
        experts[0][1].vllm,
        next(member.vllm for _, member in experts if member.part is Part.EXPERT_DOWN),
    )
    return (
        stack(
            w13,
            [Rectangle(index, cut * ffn, ffn, 0) for index in gates_ups],
            width=hidden,
            shape=(last - first, 2 * ffn, hidden),
        ),
        stack(
            w2,
            [Rectangle(index, 0, hidden, cut * ffn) for index in downs],
            width=ffn,
            shape=(last - first, hidden, ffn),
        ),
    )
