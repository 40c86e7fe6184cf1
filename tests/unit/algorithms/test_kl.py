import numpy as np
import torch

from realloc.algorithms.kl import KlEstimator, estimate_kl


def test_both_estimators_average_to_the_exact_kl():
    """The mean over the policy's distribution of either estimate is KL(policy ‖ reference)."""
    torch.manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    p, q = np.exp(logprobs.numpy()), np.exp(ref_logprobs.numpy())
    exact = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    for estimator in KlEstimator:
        mean = (logprobs.exp() * estimate_kl(logprobs, ref_logprobs, estimator)).sum()
        np.testing.assert_allclose(float(mean), exact, rtol=1e-9)


def test_k3_is_never_negative():
    """K3 is at least zero for every token, and zero where policy and reference agree."""
    torch.manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 1000)
    assert estimate_kl(logprobs, ref_logprobs, KlEstimator.K3).min() >= 0
    assert not estimate_kl(logprobs, logprobs, KlEstimator.K3).any()
