"""The family tables against the checkpoints that Hugging Face's own models write."""

import json

import pytest

from realloc.core.model import Head, ModelArchitecture
from realloc.reallocation.families import KNOWN_FAMILIES, canonical_names, canonical_tensors

BASE = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEAD_DIM = {"head_dim": 32}
CASES = {
    "llama": {**HEAD_DIM, "attention_bias": True},
    "mistral": HEAD_DIM,
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": HEAD_DIM,
    "gemma2": HEAD_DIM,
    "gemma3_text": HEAD_DIM,
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {**HEAD_DIM, "num_experts": 3, "moe_intermediate_size": 32},
}


def saved(family, directory, head):
    """Names and shapes of a tiny checkpoint of the family, and its architecture."""
    import torch
    from safetensors import safe_open
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForTokenClassification,
    )

    config = AutoConfig.for_model(family, **BASE, **CASES[family], num_labels=1)
    make = AutoModelForCausalLM if head is Head.LM else AutoModelForTokenClassification
    make.from_config(config, dtype=torch.float32).save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    with safe_open(directory / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 — no dict
    return shapes, ModelArchitecture.from_hf_config(written).with_head(head)


def test_every_family_has_a_case():
    """No family table goes without this proof."""
    assert set(CASES) == KNOWN_FAMILIES


@pytest.mark.parametrize("family", CASES)
def test_checkpoint_has_exactly_the_canonical_tensors(family, tmp_path):
    """A checkpoint written by transformers has the table's names and shapes, and no others."""
    shapes, architecture = saved(family, tmp_path, Head.LM)
    assert {t.name: t.shape for t in canonical_tensors(architecture)} == shapes
    assert tuple(t.name for t in canonical_tensors(architecture)) == canonical_names(architecture)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_value_head_is_a_classifier_with_one_label(family, tmp_path):
    """A value model's checkpoint is Hugging Face's token classifier, but for its bias."""
    shapes, architecture = saved(family, tmp_path, Head.VALUE)
    del shapes["score.bias"]
    assert {t.name: t.shape for t in canonical_tensors(architecture)} == shapes
