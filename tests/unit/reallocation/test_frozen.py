"""Which parts of a model keep their weights."""

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.frozen import (
    check_frozen,
    frozen_parameters,
    is_frozen,
    unknown_names,
)
from realloc.reallocation.layouts.provider import local_parameters
from tests.tiny_models import tiny_config

ARCHITECTURE = ModelArchitecture.from_hf_config(tiny_config("llama", num_hidden_layers=12))


def megatron(strategy: str) -> Layout:
    parsed = ParallelStrategy.parse(strategy)
    return Layout(kind=LayoutKind.MEGATRON, strategy=parsed, devices=tuple(range(parsed.num_ranks)))


def test_a_name_means_itself_and_what_lies_below_it() -> None:
    """Layer 1 is not layer 10; a dot at the end changes nothing."""
    tensor = "model.layers.1.mlp.up_proj.weight"
    assert is_frozen(tensor, (tensor,))
    assert is_frozen(tensor, ("lm_head", "model.layers.1."))
    assert not is_frozen("model.layers.10.mlp.up_proj.weight", ("model.layers.1",))
    assert not is_frozen(tensor, ())


def test_names_of_nothing_are_found() -> None:
    """By position, so that the user's field can be named."""
    names = ("model.layers.11", "model.layers.12", "embed_tokens", "lm_head.weight")
    assert list(unknown_names(ARCHITECTURE, names)) == [1, 2]


def test_parameters_follow_their_tensors() -> None:
    """A fused parameter is frozen with all of its members, on every rank."""
    layout = megatron("d1t2p1")
    attention = "model.layers.3.self_attn"
    names = ("model.embed_tokens", *(f"{attention}.{x}_proj" for x in "qkv"))
    check_frozen(ARCHITECTURE, layout, names)
    for rank in range(2):
        table = local_parameters(ARCHITECTURE, layout, rank)
        assert frozen_parameters(ARCHITECTURE, table, names) == {
            "embedding.word_embeddings.weight",
            "decoder.layers.3.self_attention.linear_qkv.weight",
        }


def test_what_cannot_be_left_alone_is_refused() -> None:
    """A part of a fused parameter; everything; a whole pipeline stage."""
    with pytest.raises(InvalidInput, match=r"linear_fc1\.weight holds .*freeze all or none"):
        check_frozen(ARCHITECTURE, megatron("d1t1p1"), ("model.layers.3.mlp.up_proj",))
    with pytest.raises(InvalidInput, match=r"leaves nothing to train$"):
        check_frozen(ARCHITECTURE, megatron("d1t1p1"), ("model", "lm_head"))
    first = ("model.embed_tokens", *(f"model.layers.{number}" for number in range(6)))
    check_frozen(ARCHITECTURE, megatron("d1t1p1"), first)
    with pytest.raises(InvalidInput, match="nothing to train in stage 0 of d1t1p2"):
        check_frozen(ARCHITECTURE, megatron("d1t1p2"), first)
