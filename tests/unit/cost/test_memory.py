"""Bytes against published counts and formulas."""

from dataclasses import replace

import pytest

from realloc.core.model import Head
from realloc.core.strategy import ParallelStrategy
from realloc.cost.layers import Tokens
from realloc.cost.memory import (
    cache_bytes_per_token,
    gradient_bytes,
    optimizer_bytes,
    training_activation_bytes,
    weight_bytes,
)
from realloc.cost.model_size import num_parameters, stage_parameters
from realloc.cost.training import TrainingStyle
from tests.unit.cost.models import LLAMA_8B, LLAMA_70B

STYLE = TrainingStyle()


def strategy(text: str) -> ParallelStrategy:
    return ParallelStrategy.parse(text)


def test_parameters_are_those_of_the_published_models() -> None:
    """Llama-3 8B and 70B have 8,030,261,248 and 70,553,706,496 parameters."""
    assert num_parameters(LLAMA_8B) == 8_030_261_248
    assert num_parameters(LLAMA_70B) == 70_553_706_496


def test_a_single_stage_holds_everything_but_the_last_norm() -> None:
    """One stage's parameters are the model's."""
    stage = stage_parameters(LLAMA_8B, tensor=1, pipeline=1)
    assert stage == num_parameters(LLAMA_8B) - LLAMA_8B.hidden_size


def test_weights_split_over_tensor_and_pipeline() -> None:
    """Eight tensor ranks hold an eighth each; stages at least their share."""
    whole = weight_bytes(LLAMA_70B, strategy("d1t1p1"), 2)
    assert weight_bytes(LLAMA_70B, strategy("d1t8p1"), 2) == whole / 8
    assert whole / 4 < weight_bytes(LLAMA_70B, strategy("d1t1p4"), 2) < whole / 3.5


def test_sharded_adam_needs_four_and_twelve_over_d_bytes() -> None:
    """Per parameter: a float32 gradient, and a data rank's share of master and moments."""
    parameters = stage_parameters(LLAMA_8B, tensor=1, pipeline=1)
    held = strategy("d4t1p1")
    assert gradient_bytes(LLAMA_8B, held, STYLE) == pytest.approx(parameters * 4)
    assert optimizer_bytes(LLAMA_8B, held, STYLE) == pytest.approx(parameters * 12 / 4)


def test_value_heads_have_no_logits() -> None:
    """A critic's activations are smaller than an actor's by the logits."""
    tokens = Tokens(rows=4, length=2048)
    actor = training_activation_bytes(LLAMA_8B, strategy("d1t1p1"), tokens, 1, STYLE)
    critic = training_activation_bytes(
        LLAMA_8B.with_head(Head.VALUE), strategy("d1t1p1"), tokens, 1, STYLE
    )
    assert actor - critic == pytest.approx(8 * tokens.count * (LLAMA_8B.vocab_size - 1))


def test_recomputation_keeps_only_the_inputs() -> None:
    """Each layer's input stays, two bytes per hidden element, and one layer is whole."""
    tokens = Tokens(rows=1, length=8192)
    few = training_activation_bytes(
        replace(LLAMA_8B, num_layers=16),
        strategy("d1t1p1"),
        tokens,
        1,
        replace(STYLE, recompute=True),
    )
    many = training_activation_bytes(
        LLAMA_8B, strategy("d1t1p1"), tokens, 1, replace(STYLE, recompute=True)
    )
    assert many - few == pytest.approx(16 * 2 * 8192 * 4096)


def test_stages_hold_as_many_micro_batches_as_there_are_stages() -> None:
    """1F1B: the first of four stages holds four micro-batches of a quarter of the layers."""
    tokens = Tokens(rows=1, length=1024)
    critic = LLAMA_8B.with_head(Head.VALUE)
    one = training_activation_bytes(critic, strategy("d1t1p4"), tokens, 1, STYLE)
    two = training_activation_bytes(critic, strategy("d1t1p4"), tokens, 2, STYLE)
    many = training_activation_bytes(critic, strategy("d1t1p4"), tokens, 16, STYLE)
    assert many - one == pytest.approx(3 * (two - one))


def test_grouped_heads_shrink_the_cache() -> None:
    """8B: 8 heads of 128, 32 layers, keys and values of two bytes: 128 KiB per token."""
    assert cache_bytes_per_token(LLAMA_8B, 1, 2) == 128 * 1024
    assert cache_bytes_per_token(LLAMA_8B, 8, 2) == 16 * 1024
    assert cache_bytes_per_token(LLAMA_8B, 16, 2) == 16 * 1024
