"""Losses over tokens, as sums: the caller divides by the global number of tokens.

Every tensor of one call has the same shape, whichever it is: packed tokens [N] or padded rows
[B, T]. `mask` is bool, True on tokens that count; what stands elsewhere does not matter, not
even if it is NaN. A mask without any True gives zeros with a gradient of zeros, so that a rank
without rows can take part in the backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossSums:
    """A loss before it is normalised."""

    loss: Tensor
    """0-d, differentiable: sum over the tokens that count."""
    num_tokens: Tensor
    """0-d float32: the tokens that count."""
    metrics: Mapping[str, Tensor]
    """0-d, detached: sums over the same tokens; divide them by the number of tokens, too."""


def sft_loss(logprobs: Tensor, mask: Tensor) -> LossSums:
    """Cross entropy of the target tokens.

    Args:
        logprobs: log-probability of each target token.
        mask: the tokens to learn.

    Metrics: ``nll``.
    """
    loss = -_kept(logprobs, mask).sum()
    return _sums(loss, mask, {"nll": loss})


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_ratio: float,
) -> LossSums:
    """PPO's clipped surrogate.

    Args:
        logprobs: of the sampled tokens under the policy in training.
        old_logprobs: under the policy that sampled them.
        advantages: of each token.
        mask: the response's tokens.
        clip_ratio: no gain from a probability ratio beyond 1 ± this.

    Metrics: ``policy_loss``; ``ratio``, the probability ratio; ``clip_fraction``, 1 where the
    clipped term was taken; ``approx_kl``, the k3 estimate of KL(old ‖ new).

    Source: Proximal Policy Optimization Algorithms, arXiv 1707.06347, eq. 7.
    """
    log_ratio = _kept(logprobs - old_logprobs, mask)
    advantages = _kept(advantages, mask)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio)
    loss = torch.maximum(plain, clipped).sum()
    metrics = {
        "policy_loss": loss,
        "ratio": _kept(ratio, mask).sum(),
        "clip_fraction": (clipped > plain).sum(),
        "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
    }
    return _sums(loss, mask, metrics)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, value_clip: float
) -> LossSums:
    """Half the squared error of the critic, without gain from moving far from the old values.

    Args:
        values: of the critic in training.
        old_values: of the critic when the batch was made.
        returns: what the values aim at.
        mask: the response's tokens.
        value_clip: largest useful distance from the old value.

    Metrics: ``value_loss``; ``value``; ``value_error``, squared, unclipped;
    ``value_clip_fraction``, 1 where the clipped term was taken.

    Source: PPO's reference code, openai/baselines ppo2; arXiv 2005.12729, section 2.
    """
    values, old_values, returns = (_kept(x, mask) for x in (values, old_values, returns))
    near = values.clamp(old_values - value_clip, old_values + value_clip)
    plain = (values - returns).square()
    clipped = (near - returns).square()
    loss = 0.5 * torch.maximum(plain, clipped).sum()
    metrics = {
        "value_loss": loss,
        "value": values.sum(),
        "value_error": plain.sum(),
        "value_clip_fraction": (clipped > plain).sum(),
    }
    return _sums(loss, mask, metrics)


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    """Zero outside the mask, also as seen by the gradient."""
    return torch.where(mask, values, 0.0)


def _sums(loss: Tensor, mask: Tensor, metrics: Mapping[str, Tensor]) -> LossSums:
    return LossSums(
        loss=loss,
        num_tokens=mask.sum().float(),
        metrics={name: value.detach().float() for name, value in metrics.items()},
    )
