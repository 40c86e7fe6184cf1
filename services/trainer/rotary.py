"""Rotary position embeddings of packed rows.

Megatron-core's own start every row at position 0 by a loop over the rows, and fix three of
the parameters of Llama-3's scaling; these take positions, and all parameters.

Shapes: T packed tokens, D size of a head.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from realloc.core.model import ModelArchitecture


class RotaryAngles:
    """The angle by which each pair of a head's dims turns at each position."""

    def __init__(self, architecture: ModelArchitecture, device: torch.device) -> None:
        dims = torch.arange(0, architecture.head_dim, 2, dtype=torch.int64).float()
        frequencies = 1.0 / architecture.rope_theta ** (dims / architecture.head_dim)
        scaling = dict(architecture.rope_scaling)
        if scaling:
            frequencies = scale_llama3(frequencies, scaling)
        self._frequencies = frequencies.to(device)

    def at(self, positions_T: Tensor) -> Tensor:
        """Angles in radians, float32 [T, 1, 1, D], the two halves alike."""
        angles = torch.outer(positions_T.float(), self._frequencies)
        return torch.cat([angles, angles], -1)[:, None, None, :]


def scale_llama3(frequencies: Tensor, scaling: Mapping[str, float]) -> Tensor:
    """Slow down the low frequencies, so that a longer context fits.

    Args:
        frequencies: float32 [D / 2], radians per position.
        scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor``,
            ``original_max_position_embeddings``.

    Source: ``rope_type: llama3`` of Hugging Face's modeling_rope_utils.py.
    """
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies
