"""Random masked batches for hypothesis."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch:
    """Matrices of one shape, with rubbish (NaN included) where masked."""

    mask: torch.Tensor
    matrices: tuple[torch.Tensor, ...]
    scores: torch.Tensor

    def rows(self, matrix: torch.Tensor) -> list[list[float]]:
        """The unmasked numbers of each row."""
        return [row[keep].tolist() for row, keep in zip(matrix, self.mask, strict=True)]

    def tokens(self, matrix: torch.Tensor) -> list[float]:
        return [number for row in self.rows(matrix) for number in row]


@st.composite
def masked_batches(draw, num_matrices: int) -> MaskedBatch:
    """Zero to six rows of zero to seven tokens; masks ragged, with holes, or empty."""
    rows, width = draw(st.integers(0, 6)), draw(st.integers(0, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.05, 1.0]))
    if draw(st.booleans()):
        mask = rng.random((rows, width)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    else:
        mask = np.arange(width)[None] < rng.integers(0, width + 1, rows)[:, None]
    matrices = scale * rng.standard_normal((num_matrices, rows, width))
    matrices[:, ~mask] = rng.choice([np.nan, 0.0, 1e30])
    scores = rng.standard_normal(rows) if draw(st.booleans()) else np.ones(rows)
    return MaskedBatch(
        mask=torch.from_numpy(mask),
        matrices=tuple(torch.tensor(matrix, dtype=torch.float32) for matrix in matrices),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
