import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realloc.algorithms.advantages import (
    estimate_advantages,
    last_token_mask,
    shape_rewards,
    whiten,
    whitening_sums,
)
from realloc.algorithms.kl import KlEstimator
from tests.unit.algorithms import numpy_ppo
from tests.unit.algorithms.masked_batches import masked_batches

discounts = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def assert_rows_equal(batch, matrix, expected_rows):
    """Unmasked numbers as expected, zeros elsewhere."""
    for row, expected in zip(batch.rows(matrix), expected_rows, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)
    assert not matrix[~batch.mask].any()


@given(masked_batches(2), st.sampled_from([0.0, 0.1, 2.0]), st.sampled_from(list(KlEstimator)))
def test_shaped_rewards_equal_the_reference(batch, coefficient, estimator):
    """Each token pays for its KL, and the last one gets the score."""
    logprobs, ref_logprobs = batch.matrices
    rewards = shape_rewards(
        batch.scores, logprobs, ref_logprobs, batch.mask, coefficient, estimator
    )
    expected = [
        numpy_ppo.rewards_of_row(score, row, ref_row, coefficient, estimator.value)
        for score, row, ref_row in zip(
            batch.scores.tolist(), batch.rows(logprobs), batch.rows(ref_logprobs), strict=True
        )
    ]
    assert_rows_equal(batch, rewards, expected)


@given(masked_batches(2), discounts, discounts)
def test_advantages_equal_the_definition(batch, gamma, gae_lambda):
    """The backward recursion gives the sums of GAE's definition, holes and empty rows included."""
    rewards, values = batch.matrices
    result = estimate_advantages(rewards, values, batch.mask, gamma=gamma, gae_lambda=gae_lambda)
    expected = [
        numpy_ppo.gae_of_row(reward_row, value_row, gamma, gae_lambda)
        for reward_row, value_row in zip(batch.rows(rewards), batch.rows(values), strict=True)
    ]
    assert_rows_equal(batch, result.advantages_BT, [advantages for advantages, _ in expected])
    assert_rows_equal(batch, result.returns_BT, [returns for _, returns in expected])


@given(masked_batches(1))
def test_whitening_equals_the_reference(batch):
    """Whitened numbers have the reference's values over all rows together."""
    (values,) = batch.matrices
    result = whiten(values, batch.mask, whitening_sums(values, batch.mask))
    expected = numpy_ppo.whitened(batch.tokens(values))
    np.testing.assert_allclose(batch.tokens(result), expected, rtol=1e-4, atol=1e-4)
    assert not result[~batch.mask].any()
    assert result.dtype == values.dtype


@given(masked_batches(1), st.integers(0, 6))
def test_whitening_does_not_depend_on_the_ranks(batch, cut):
    """Sums of two ranks, added up, whiten each rank's rows as one rank would."""
    (values,) = batch.matrices
    whole = whiten(values, batch.mask, whitening_sums(values, batch.mask))
    parts = [(values[:cut], batch.mask[:cut]), (values[cut:], batch.mask[cut:])]
    sums = sum(whitening_sums(*part) for part in parts)
    torch.testing.assert_close(torch.cat([whiten(*part, sums) for part in parts]), whole)


def test_equal_values_whiten_to_zeros():
    """Where all advantages are equal there is nothing to learn, and no division by zero."""
    values = torch.full((3, 2), 0.7)
    mask = torch.ones(3, 2, dtype=torch.bool)
    assert whiten(values, mask, whitening_sums(values, mask)).abs().max() < 1e-6


def test_the_score_stands_on_the_last_sampled_token():
    """Padding, holes and empty rows do not take the score."""
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    expected = torch.tensor([[False, True, False], [False] * 3, [False, False, True]])
    assert torch.equal(last_token_mask(mask), expected)


def test_without_value_or_discount_the_advantage_is_the_reward_to_go():
    """γ = λ = 1 with a critic of zeros: every token gets the score of its response."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    rewards = shape_rewards(torch.tensor([1.0, 0.5]), zeros, zeros, mask, 0.1)
    result = estimate_advantages(rewards, zeros, mask, gamma=1.0, gae_lambda=1.0)
    assert result.advantages_BT.tolist() == [[1.0, 1.0, 1.0], [0.5, 0.0, 0.0]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
def test_nothing_in_nothing_out(shape):
    """A rank without rows, or rows without tokens, get empty results of the same shape."""
    empty, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    rewards = shape_rewards(torch.zeros(shape[0]), empty, empty, mask, 0.1)
    result = estimate_advantages(rewards, empty, mask, gamma=1.0, gae_lambda=0.95)
    whitened = whiten(result.advantages_BT, mask, whitening_sums(result.advantages_BT, mask))
    assert whitened.shape == result.returns_BT.shape == shape
