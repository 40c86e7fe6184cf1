"""PPO's formulas for one row of plain numbers at a time: the oracle of the vectorised code.

A row is the list of its unmasked tokens. Everything is float64 and a loop.
"""

import math

import numpy as np


def rewards_of_row(score, logprobs, ref_logprobs, coefficient, estimator):
    rewards = []
    for logprob, ref in zip(logprobs, ref_logprobs, strict=True):
        k1 = logprob - ref
        k3 = math.exp(-k1) - 1 + k1
        rewards.append(-coefficient * {"k1": k1, "k3": k3}[estimator])
    if rewards:
        rewards[-1] += score
    return rewards


def gae_of_row(rewards, values, gamma, gae_lambda):
    """A_t = Σ_l (γλ)^l δ_{t+l}, straight from the definition (no recursion)."""
    size = len(rewards)
    deltas = []
    for t in range(size):
        next_value = values[t + 1] if t + 1 < size else 0.0
        deltas.append(rewards[t] + gamma * next_value - values[t])
    advantages = [
        sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, size))
        for t in range(size)
    ]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whitened(numbers):
    if not numbers:
        return []
    mean = sum(numbers) / len(numbers)
    variance = sum((x - mean) ** 2 for x in numbers) / len(numbers)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in numbers]


def policy_loss_of_token(logprob, old_logprob, advantage, clip_ratio):
    """The surrogate as the paper has it: −min(r A, clip(r) A)."""
    ratio = math.exp(logprob - old_logprob)
    clipped_ratio = min(max(ratio, 1 - clip_ratio), 1 + clip_ratio)
    plain, clipped = ratio * advantage, clipped_ratio * advantage
    return {
        "policy_loss": -min(plain, clipped),
        "ratio": ratio,
        "clip_fraction": float(clipped < plain),
        "approx_kl": ratio - 1 - math.log(ratio),
    }


def value_loss_of_token(value, old_value, target, value_clip):
    near = min(max(value, old_value - value_clip), old_value + value_clip)
    plain, clipped = (value - target) ** 2, (near - target) ** 2
    return {
        "value_loss": 0.5 * max(plain, clipped),
        "value": value,
        "value_error": plain,
        "value_clip_fraction": float(clipped > plain),
    }


def summed(tokens):
    """Sum each metric over a list of dictionaries."""
    names = tokens[0] if tokens else ()
    return {name: float(np.sum([token[name] for token in tokens])) for name in names}
