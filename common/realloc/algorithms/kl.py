"""Estimates of the KL divergence from samples of the policy.

The controllers of its coefficient are `realloc.core.kl_controller`: the scheduler needs them
without torch. Source of the names: J. Schulman, Approximating KL Divergence, 2020,
http://joschu.net/blog/kl-approx.html
"""

from enum import Enum

import torch
from torch import Tensor


class KlEstimator(Enum):
    """How KL(policy ‖ reference) is estimated from one sampled token."""

    K1 = "k1"
    """log p − log q: unbiased, may be negative for one token."""
    K3 = "k3"
    """q/p − 1 − log(q/p): unbiased, never negative, lower variance."""


def estimate_kl(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator = KlEstimator.K1
) -> Tensor:
    """Estimate KL(policy ‖ reference) of each sampled token, nats.

    Args:
        logprobs: any shape; of the tokens under the policy that sampled them.
        ref_logprobs: same shape; under the reference.
        estimator: which estimate.

    Returns:
        Same shape. Its mean over samples estimates the KL per token.
    """
    log_ratio = logprobs - ref_logprobs
    if estimator is KlEstimator.K1:
        return log_ratio
    return torch.expm1(-log_ratio) + log_ratio
