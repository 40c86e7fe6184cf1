"""The ``config.json`` of a checkpoint, so that transformers and vLLM load it."""

from collections.abc import Mapping
from typing import Any

from realloc.core.model import Head, ModelArchitecture

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_TASKS = {Head.LM: "ForCausalLM", Head.VALUE: "ForSequenceClassification"}


def export_config(architecture: ModelArchitecture, base: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model as transformers does.

    Args:
        architecture: the model.
        base: configuration of the checkpoint that it came from: keeps what the architecture
            does not know (token ids, initializer range); empty for none.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": architecture.rope_theta}
    if architecture.rope_scaling:
        rope |= {"rope_type": "llama3", **dict(architecture.rope_scaling)}
    config = {
        **base,
        "model_type": architecture.family,
        "architectures": [_CLASSES[architecture.family] + _TASKS[architecture.head]],
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "rms_norm_eps": architecture.rms_norm_eps,
        "rope_theta": architecture.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": architecture.tied_embeddings,
        "hidden_act": "silu",
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    if architecture.rope_scaling:
        config["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    if architecture.head is Head.VALUE:
        config |= {"id2label": {"0": "value"}, "label2id": {"value": 0}, "num_labels": 1}
    return config
