"""Model families: which canonical tensors a model has, and where each engine keeps them.

A family is one table of `TensorRule`s, one row per kind of tensor of a transformer layer.
A row gives the tensor's Hugging Face name and shape, its part in the layer, and its name in
Megatron-core and vLLM. Adding a family is adding its table to ``_TABLES``.

Canonical tensors are ordered: embedding, layers (each in the table's order), final norm,
head. Shapes are those of the Hugging Face checkpoint; experts are one tensor each, as there.
Checkpoint names: transformers 4.57 and 5.19 ``modeling_*.py``; Megatron names: megatron-core
0.16.1 ``GPTModel`` (experts as ``SequentialMLP``); vLLM names: 0.32 ``model_executor/models``.
"""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from realloc.core.model import Head, ModelArchitecture, check_known_family


class Part(Enum):
    """The part that a tensor plays, which decides how tensor parallelism cuts it."""

    REPLICATED = "replicated"
    """Whole on every tensor rank: norms, routers."""
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    """Query, key and value heads: cut by rows, fused with each other."""
    GATE = "gate"
    UP = "up"
    """Two halves of the gated MLP's first projection: cut by rows, fused."""
    INPUT_SPLIT = "input_split"
    """Projections back to the hidden size: cut by columns."""
    VOCABULARY = "vocabulary"
    """One row per token: cut by rows after padding the vocabulary."""
    EXPERT_GATE = "expert_gate"
    EXPERT_UP = "expert_up"
    EXPERT_DOWN = "expert_down"
    """The same projections of one expert."""


EXPERT_PARTS = frozenset({Part.EXPERT_GATE, Part.EXPERT_UP, Part.EXPERT_DOWN})


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One row of a family's table. ``{expert}`` in a name stands for an expert's number."""

    hf: str
    """Name in the checkpoint, after ``model.layers.N.``."""
    rows: str
    """Size of the first dimension, by the name of a size of `_sizes`."""
    cols: str
    """Size of the second dimension; empty for a vector."""
    part: Part
    megatron: str
    """Name after ``decoder.layers.N.``; fused tensors share one; experts count locally."""
    vllm: str
    """Name after ``model.layers.N.``; fused tensors share one."""
    only_if: str = ""
    """Attribute of the architecture that must be true for the tensor to exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalTensor:
    """A logical tensor of the model, as its Hugging Face checkpoint has it."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return self.shape[0] * self.cols

    @property
    def cols(self) -> int:
        """Elements from one row to the next; 1 for a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTensor:
    """A canonical tensor together with what the layout providers must know of it."""

    tensor: CanonicalTensor
    part: Part
    megatron: str
    vllm: str
    expert: int = -1
    """Number of the expert; −1 for tensors outside experts."""


def _norm(hf: str, megatron: str) -> TensorRule:
    return TensorRule(hf, "hidden", "", Part.REPLICATED, megatron, hf)


def _qkv(leaf: str, cols: str, only_if: str = "") -> tuple[TensorRule, ...]:
    fused = (f"self_attention.linear_qkv.{leaf}", f"self_attn.qkv_proj.{leaf}", only_if)
    return (
        TensorRule(f"self_attn.q_proj.{leaf}", "query", cols, Part.QUERY, *fused),
        TensorRule(f"self_attn.k_proj.{leaf}", "key_value", cols, Part.KEY, *fused),
        TensorRule(f"self_attn.v_proj.{leaf}", "key_value", cols, Part.VALUE, *fused),
    )


def _head_norm(which: str) -> TensorRule:
    name = f"self_attn.{which}_norm.weight"
    megatron = f"self_attention.{which}_layernorm.weight"
    return TensorRule(name, "head_dim", "", Part.REPLICATED, megatron, name, "qk_norm")


def _experts(block: str, gate: str, up: str, down: str) -> tuple[TensorRule, ...]:
    megatron = "mlp.experts.local_experts.{expert}"
    fc1 = f"{megatron}.linear_fc1.weight"
    routed = f"{block}.experts.routed_experts"
    w13, w2 = f"{routed}.w13_weight", f"{routed}.w2_weight"
    expert = f"{block}.experts.{{expert}}"
    return (
        TensorRule(
            f"{block}.gate.weight",
            "experts",
            "hidden",
            Part.REPLICATED,
            "mlp.router.weight",
            f"{block}.gate.weight",
        ),
        TensorRule(f"{expert}.{gate}.weight", "expert_ffn", "hidden", Part.EXPERT_GATE, fc1, w13),
        TensorRule(f"{expert}.{up}.weight", "expert_ffn", "hidden", Part.EXPERT_UP, fc1, w13),
        TensorRule(
            f"{expert}.{down}.weight",
            "hidden",
            "expert_ffn",
            Part.EXPERT_DOWN,
            f"{megatron}.linear_fc2.weight",
            w2,
        ),
    )


_OUTPUT = TensorRule(
    "self_attn.o_proj.weight",
    "hidden",
    "query",
    Part.INPUT_SPLIT,
    "self_attention.linear_proj.weight",
    "self_attn.o_proj.weight",
)
_OUTPUT_BIAS = TensorRule(
    "self_attn.o_proj.bias",
    "hidden",
    "",
    Part.REPLICATED,
    "self_attention.linear_proj.bias",
    "self_attn.o_proj.bias",
    "qkv_bias",
)
_ATTENTION = (*_qkv("weight", "hidden"), *_qkv("bias", "", "qkv_bias"), _OUTPUT)
_HEAD_NORMS = (_head_norm("q"), _head_norm("k"))
_NORMS = (
    _norm("input_layernorm.weight", "input_layernorm.weight"),
    _norm("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
)
_SANDWICH_NORMS = (
    _norm("input_layernorm.weight", "input_layernorm.weight"),
    _norm("post_attention_layernorm.weight", "self_attention.linear_proj.post_layernorm.weight"),
    _norm("pre_feedforward_layernorm.weight", "pre_mlp_layernorm.weight"),
    _norm("post_feedforward_layernorm.weight", "mlp.linear_fc2.post_layernorm.weight"),
)
"""Gemma's norms before and after each half of a layer. Megatron-core has no such layer: the
names are those that Megatron Bridge's Gemma spec gives them."""
_FC1 = ("mlp.linear_fc1.weight", "mlp.gate_up_proj.weight")
_MLP = (
    TensorRule("mlp.gate_proj.weight", "ffn", "hidden", Part.GATE, *_FC1),
    TensorRule("mlp.up_proj.weight", "ffn", "hidden", Part.UP, *_FC1),
    TensorRule(
        "mlp.down_proj.weight",
        "hidden",
        "ffn",
        Part.INPUT_SPLIT,
        "mlp.linear_fc2.weight",
        "mlp.down_proj.weight",
    ),
)

_TABLES: dict[str, tuple[TensorRule, ...]] = {
    "llama": (*_NORMS, *_ATTENTION, _OUTPUT_BIAS, *_MLP),
    "mistral": (*_NORMS, *_ATTENTION, *_MLP),
    "qwen2": (*_NORMS, *_ATTENTION, *_MLP),
    "qwen3": (*_NORMS, *_ATTENTION, _OUTPUT_BIAS, *_HEAD_NORMS, *_MLP),
    "gemma2": (*_SANDWICH_NORMS, *_ATTENTION, *_MLP),
    "gemma3_text": (*_SANDWICH_NORMS, *_ATTENTION, *_HEAD_NORMS, *_MLP),
    "mixtral": (*_NORMS, *_ATTENTION, *_experts("block_sparse_moe", "w1", "w3", "w2")),
    "qwen3_moe": (
        *_NORMS,
        *_ATTENTION,
        _OUTPUT_BIAS,
        *_HEAD_NORMS,
        *_experts("mlp", "gate_proj", "up_proj", "down_proj"),
    ),
}

KNOWN_FAMILIES = frozenset(_TABLES)

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
VALUE_HEAD = "score.weight"
"""One row: Hugging Face's name for the head of a classifier with one label."""


def canonical_tensors(architecture: ModelArchitecture) -> tuple[CanonicalTensor, ...]:
    """The model's logical tensors in canonical order.

    Raises:
        InvalidInput: the family is not in `KNOWN_FAMILIES`.
    """
    head, *rest = (row.tensor for row in outer_tensors(architecture))
    template = [row.tensor for row in layer_tensors(architecture)]
    layers = (
        CanonicalTensor(name=f"model.layers.{layer}.{tensor.name}", shape=tensor.shape)
        for layer in range(architecture.num_layers)
        for tensor in template
    )
    return (head, *layers, *rest)


def canonical_names(architecture: ModelArchitecture) -> tuple[str, ...]:
    """Names of `canonical_tensors`."""
    head, *rest = (row.tensor.name for row in outer_tensors(architecture))
    template = [row.tensor.name for row in layer_tensors(architecture)]
    layers = [
        f"model.layers.{layer}.{name}"
        for layer in range(architecture.num_layers)
        for name in template
    ]
    return (head, *layers, *rest)


@lru_cache(maxsize=16)
def layer_tensors(architecture: ModelArchitecture) -> tuple[ModelTensor, ...]:
    """The tensors of one layer, named without ``model.layers.N.``; all layers are alike.

    Experts come last, expert by expert.
    """
    check_known_family(architecture, KNOWN_FAMILIES)
    sizes = _sizes(architecture)
    tensors: list[ModelTensor] = []
    experts: list[TensorRule] = []
    for rule in _TABLES[architecture.family]:
        if rule.part in EXPERT_PARTS:
            experts.append(rule)
        elif not rule.only_if or getattr(architecture, rule.only_if):
            tensors.append(_from_rule(rule, sizes))
    tensors.extend(
        _from_rule(rule, sizes, expert)
        for expert in range(architecture.num_experts)
        for rule in experts
    )
    return tuple(tensors)


def outer_tensors(architecture: ModelArchitecture) -> tuple[ModelTensor, ...]:
    """The tensors outside layers: embedding, final norm and, unless tied, the head."""
    hidden, vocabulary = architecture.hidden_size, architecture.vocab_size
    tensors = [
        ModelTensor(
            tensor=CanonicalTensor(name=EMBEDDING, shape=(vocabulary, hidden)),
            part=Part.VOCABULARY,
            megatron="embedding.word_embeddings.weight",
            vllm=EMBEDDING,
        ),
        ModelTensor(
            tensor=CanonicalTensor(name=FINAL_NORM, shape=(hidden,)),
            part=Part.REPLICATED,
            megatron="decoder.final_layernorm.weight",
            vllm=FINAL_NORM,
        ),
    ]
    value = architecture.head is Head.VALUE
    if value or not architecture.tied_embeddings:
        tensors.append(
            ModelTensor(
                tensor=CanonicalTensor(
                    name=VALUE_HEAD if value else LM_HEAD,
                    shape=(1 if value else vocabulary, hidden),
                ),
                part=Part.REPLICATED if value else Part.VOCABULARY,
                megatron="output_layer.weight",
                vllm=VALUE_HEAD if value else LM_HEAD,
            )
        )
    return tuple(tensors)


def _from_rule(rule: TensorRule, sizes: dict[str, int], expert: int = -1) -> ModelTensor:
    shape = (sizes[rule.rows], sizes[rule.cols]) if rule.cols else (sizes[rule.rows],)
    return ModelTensor(
        tensor=CanonicalTensor(name=rule.hf.replace("{expert}", str(expert)), shape=shape),
        part=rule.part,
        megatron=rule.megatron,
        vllm=rule.vllm,
        expert=expert,
    )


def _sizes(architecture: ModelArchitecture) -> dict[str, int]:
    return {
        "hidden": architecture.hidden_size,
        "ffn": architecture.intermediate_size,
        "query": architecture.query_size,
        "key_value": architecture.key_value_size,
        "head_dim": architecture.head_dim,
        "experts": architecture.num_experts,
        "expert_ffn": architecture.expert_intermediate_size,
    }
