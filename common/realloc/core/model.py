"""What a language model is made of: enough to build it, to lay it out and to cost it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from realloc.core.errors import InvalidInput, Problem, raise_problems


class Head(Enum):
    """What stands on top of the last hidden state."""

    LM = "lm"
    """A projection to the vocabulary."""
    VALUE = "value"
    """A projection to one number per token: critics and reward models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArchitecture:
    """A decoder-only transformer, in the terms of its Hugging Face configuration."""

    family: str
    """``model_type`` of the Hugging Face configuration, a key of the family tables."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: tuple[tuple[str, float], ...] = ()
    """Llama-3 rope scaling (``factor``, ``low_freq_factor``, …); empty for none."""
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    """Experts per layer; 0 for a dense model."""
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    head: Head = Head.LM

    @staticmethod
    def from_hf_config(config: Mapping[str, Any], head: Head = Head.LM) -> "ModelArchitecture":
        """Read a Hugging Face ``config.json``.

        Raises:
            InvalidInput: a required key is missing or not a positive number, or the layers have
                tensors that no family has.
        """
        family = str(config.get("model_type", ""))
        required = (
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "vocab_size",
        )
        raise_problems(
            Problem(key, f"is {config.get(key)!r}; config.json needs a positive integer")
            for key in required
            if not isinstance(config.get(key), int) or config[key] < 1
        )
        raise_problems(_unlike_layers(config))
        rope = _rope(config)
        scaling: tuple[tuple[str, float], ...] = ()
        if _rope_type(rope) == "llama3":
            keys = (
                "factor",
                "high_freq_factor",
                "low_freq_factor",
                "original_max_position_embeddings",
            )
            scaling = tuple((key, float(rope[key])) for key in keys)
        heads = int(config["num_attention_heads"])
        return ModelArchitecture(
            family=family,
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab_size=int(config["vocab_size"]),
            max_position_embeddings=int(config.get("max_position_embeddings") or 2048),
            rms_norm_eps=float(config.get("rms_norm_eps") or 1e-6),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rope_scaling=scaling,
            # Gemma's configuration class ties unless told otherwise.
            tied_embeddings=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
            qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
            qk_norm=family.startswith(("qwen3", "gemma3")),
            num_experts=int(config.get("num_local_experts") or config.get("num_experts") or 0),
            experts_per_token=int(config.get("num_experts_per_tok") or 0),
            expert_intermediate_size=int(
                config.get("moe_intermediate_size") or config["intermediate_size"]
            )
            if config.get("num_local_experts") or config.get("num_experts")
            else 0,
            head=head,
        )

    def with_head(self, head: Head) -> "ModelArchitecture":
        """The same body under another head; a value head is never tied."""
        tied = self.tied_embeddings and head is Head.LM
        return replace(self, head=head, tied_embeddings=tied)

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_dim


def check_computable(config: Mapping[str, Any]) -> None:
    """Refuse models that the trainer would compute otherwise than their configuration says.

    Raises:
        InvalidInput: positions, activation or biases that the trainer's model does not have.
    """
    raise_problems(_uncomputable(config))


def _uncomputable(config: Mapping[str, Any]) -> Iterator[Problem]:
    kind = _rope_type(_rope(config))
    if kind not in ("default", "llama3"):
        yield Problem("rope_scaling", f"is {kind!r}; the trainer knows default and llama3")
    activation = config.get("hidden_act") or "silu"
    if activation != "silu":
        yield Problem("hidden_act", f"is {activation!r}; the trainer knows silu")
    if config.get("attention_bias") and config.get("model_type") != "qwen2":
        yield Problem("attention_bias", "is true; the trainer knows biases of qwen2 only")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, by their old name and by their new one."""
    return dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _unlike_layers(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Variants of known families whose layers are not all alike, or have further tensors."""
    if config.get("mlp_bias"):
        yield Problem("mlp_bias", "is true; biases of the MLP are not supported")
    if config.get("mlp_only_layers"):
        yield Problem(
            "mlp_only_layers",
            f"is {config['mlp_only_layers']}; layers without experts are not supported",
        )
    step = config.get("decoder_sparse_step") or 1
    if step != 1:
        yield Problem(
            "decoder_sparse_step", f"is {step!r}; only experts in every layer are supported"
        )


def check_known_family(architecture: ModelArchitecture, known: frozenset[str]) -> None:
    """Raise where no family table covers this model."""
    if architecture.family not in known:
        raise InvalidInput.at(
            "model_type", f"{architecture.family!r} is unknown; known: {', '.join(sorted(known))}"
        )
