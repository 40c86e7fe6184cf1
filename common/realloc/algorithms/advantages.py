"""From scores of whole responses to an advantage for each token.

Shapes: B rows (responses), T token positions. `mask_BT` is bool, True on tokens that the
policy sampled. It may have holes (tokens of a tool or a user): they are skipped, as though
the row did not have them, and every result is zero there. Rows without any True token are
legal; their score has no token to stand on and is dropped.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from realloc.algorithms.kl import KlEstimator, estimate_kl

WHITENING_EPSILON = 1e-8
"""Added to the variance, so that equal values become zeros."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Advantages:
    """What the two losses of PPO train towards."""

    advantages_BT: Tensor
    """float32; zero where masked."""
    returns_BT: Tensor
    """float32, targets of the critic; zero where masked."""


def last_token_mask(mask_BT: Tensor) -> Tensor:
    """True on each row's last True position only, bool [B, T]; rows without one stay False."""
    remaining_BT = mask_BT.flip(1).cumsum(1).flip(1)
    return mask_BT & (remaining_BT == 1)


def shape_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    kl_coefficient: float,
    estimator: KlEstimator = KlEstimator.K1,
) -> Tensor:
    """Reward each token: minus the KL penalty, and the score on the row's last token.

    Args:
        scores_B: float32 [B], the reward of each whole response.
        logprobs_BT: float32 [B, T], of the sampled tokens under the policy that sampled them.
        ref_logprobs_BT: float32 [B, T], under the frozen reference.
        mask_BT: bool [B, T].
        kl_coefficient: weight of the penalty.
        estimator: how the KL of a token is estimated.

    Returns:
        float32 [B, T], zero where masked.

    Source: Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, eq. 2.
    """
    penalty_BT = kl_coefficient * estimate_kl(logprobs_BT, ref_logprobs_BT, estimator)
    score_BT = torch.where(last_token_mask(mask_BT), scores_B.unsqueeze(1), 0.0)
    return torch.where(mask_BT, score_BT - penalty_BT, 0.0)


def estimate_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, gae_lambda: float
) -> Advantages:
    """Generalised advantage estimation; a row ends in a terminal state of value 0.

    All tensors are on the CPU.

    Args:
        rewards_BT: float32 [B, T], reward for each token.
        values_BT: float32 [B, T], the critic's value of the state before each token.
        mask_BT: bool [B, T].
        gamma: discount per token.
        gae_lambda: 0 trusts the critic, 1 the sampled return.

    Source: High-Dimensional Continuous Control Using Generalized Advantage Estimation,
    arXiv 1506.02438, eq. 16.
    """
    # In columns and in numpy: a step over contiguous rows costs a third of one in torch.
    rewards_TB, values_TB, mask_TB = (
        x_BT.T.contiguous().numpy() for x_BT in (rewards_BT, values_BT, mask_BT)
    )
    advantages_TB = np.zeros_like(rewards_TB)
    next_value_B = next_advantage_B = np.zeros(len(rewards_BT), rewards_TB.dtype)
    for t in reversed(range(len(rewards_TB))):
        delta_B = rewards_TB[t] + gamma * next_value_B - values_TB[t]
        advantages_TB[t] = delta_B + gamma * gae_lambda * next_advantage_B
        next_advantage_B = np.where(mask_TB[t], advantages_TB[t], next_advantage_B)
        next_value_B = np.where(mask_TB[t], values_TB[t], next_value_B)
    advantages_BT = torch.where(mask_BT, torch.from_numpy(advantages_TB).T, 0.0).contiguous()
    returns_BT = torch.where(mask_BT, advantages_BT + values_BT, 0.0)
    return Advantages(advantages_BT=advantages_BT, returns_BT=returns_BT)


def whitening_sums(values: Tensor, mask: Tensor) -> Tensor:
    """What whitening needs to know of all ranks' values; add it up over the ranks.

    Args:
        values: any shape.
        mask: bool, same shape.

    Returns:
        float64 [3]: sum, sum of squares, count of the values under the mask. float64, so that
        the result does not depend on how the rows are spread over ranks.
    """
    kept = values[mask].double()
    count = torch.tensor(float(kept.numel()), dtype=torch.float64, device=values.device)
    return torch.stack([kept.sum(), kept.square().sum(), count])


def whiten(values: Tensor, mask: Tensor, sums_3: Tensor) -> Tensor:
    """Shift and scale values to mean 0 and variance 1 over everything that is in the sums.

    Args:
        values: any shape.
        mask: bool, same shape.
        sums_3: float64 [3], global `whitening_sums`.

    Returns:
        Same shape and dtype, zero where masked; zeros where all values are equal.
    """
    count = sums_3[2].clamp(min=1.0)
    mean = sums_3[0] / count
    variance = (sums_3[1] / count - mean.square()).clamp(min=0.0)
    whitened = (values.double() - mean) * torch.rsqrt(variance + WHITENING_EPSILON)
    return torch.where(mask, whitened, 0.0).to(values.dtype)
