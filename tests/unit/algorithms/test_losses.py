import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from realloc.algorithms.losses import policy_loss, sft_loss, value_loss
from tests.unit.algorithms import numpy_ppo
from tests.unit.algorithms.masked_batches import masked_batches

clips = st.sampled_from([0.01, 0.2, 1.0])


def assert_sums(result, batch, expected, loss_name):
    """Loss, metrics and number of tokens are the reference's sums."""
    assert float(result.num_tokens) == int(batch.mask.sum())
    for name, value in result.metrics.items():
        np.testing.assert_allclose(float(value), expected.get(name, 0.0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(float(result.loss), float(result.metrics[loss_name]), rtol=1e-6)
    assert set(expected) <= set(result.metrics)


@given(masked_batches(3), clips)
def test_policy_loss_equals_the_reference(batch, clip_ratio):
    """The clipped surrogate and its metrics, summed over the tokens under the mask."""
    result = policy_loss(*batch.matrices, batch.mask, clip_ratio=clip_ratio)
    tokens = zip(*map(batch.tokens, batch.matrices), strict=True)
    expected = [numpy_ppo.policy_loss_of_token(*token, clip_ratio) for token in tokens]
    assert_sums(result, batch, numpy_ppo.summed(expected), "policy_loss")


@given(masked_batches(3), clips)
def test_value_loss_equals_the_reference(batch, value_clip):
    """The clipped squared error and its metrics, summed over the tokens under the mask."""
    result = value_loss(*batch.matrices, batch.mask, value_clip=value_clip)
    tokens = zip(*map(batch.tokens, batch.matrices), strict=True)
    expected = [numpy_ppo.value_loss_of_token(*token, value_clip) for token in tokens]
    assert_sums(result, batch, numpy_ppo.summed(expected), "value_loss")


@given(masked_batches(1))
def test_sft_loss_is_the_sum_of_negative_logprobs(batch):
    """Cross entropy from the log-probabilities of the targets."""
    (logprobs,) = batch.matrices
    result = sft_loss(logprobs, batch.mask)
    assert_sums(result, batch, {"nll": -sum(batch.tokens(logprobs))}, "nll")


@given(masked_batches(3))
def test_masked_tokens_get_no_gradient(batch):
    """Whatever stands outside the mask, NaN too: its gradient is zero and the others' finite."""
    new, old, target = batch.matrices
    losses = [
        lambda x: sft_loss(x, batch.mask),
        lambda x: policy_loss(x, old, target, batch.mask, clip_ratio=0.2),
        lambda x: value_loss(x, old, target, batch.mask, value_clip=0.2),
    ]
    for loss in losses:
        leaf = new.clone().requires_grad_()
        loss(leaf).loss.backward()
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~batch.mask].any()


def test_losses_of_parts_add_up_to_the_whole():
    """Micro-batches give the same sums as the batch, so the layout does not matter."""
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 8, 5)
    mask = torch.rand(8, 5) < 0.7
    whole = policy_loss(new, old, advantages, mask, clip_ratio=0.2)
    parts = [
        policy_loss(new[rows], old[rows], advantages[rows], mask[rows], clip_ratio=0.2)
        for rows in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value)


def test_the_policy_gains_nothing_beyond_the_clip():
    """A ratio already past 1 + ε of a good token, or 1 − ε of a bad one, has no gradient."""
    logprobs = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    mask = torch.ones(4, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros(4), advantages, mask, clip_ratio=0.2)
    result.loss.backward()
    assert [gradient != 0 for gradient in logprobs.grad.tolist()] == [False, False, True, True]
    assert float(result.metrics["clip_fraction"]) == 2.0
