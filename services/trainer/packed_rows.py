"""Rows packed back to back, as the model's layers see them.

Shapes: T packed tokens, B rows, S tokens of the longest row, N selected positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

MAX_PADDING = 2.0
"""Attention runs on padded rows while these have at most this many times the packed tokens."""


@dataclass(kw_only=True)
class PackedRows(PackedSeqParams):
    """Megatron-core hands this object, untouched, from the model to its attention.

    Its format stays ``sbhd`` (one long row for all but attention and positions): under
    ``thd`` Megatron-core would loop over the rows in Python for each rotary embedding.
    """

    qkv_format: str = "sbhd"
    positions_T: Tensor
    """int64, position of each token in its row."""
    selected_N: Tensor
    """int64, the packed positions whose outputs are wanted, ascending within a row."""
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    """int32 [B + 1], where each row starts."""
    padded_T: Tensor | None
    """int64, place of each token in the flattened [B, S]; None where padding would waste."""

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def is_rectangular(self) -> bool:
        """True where all rows have the same length: no padding is needed."""
        return self.longest * len(self.lengths) == sum(self.lengths)


def pack(
    lengths: NDArray[np.int64], selected_N: NDArray[np.int64], device: torch.device
) -> PackedRows:
    """Describe rows of these lengths; `selected_N` are packed positions."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    longest, total = int(lengths.max()), int(starts[-1])
    rows_T = np.repeat(np.arange(len(lengths)), lengths)
    positions_T = np.arange(total) - starts[rows_T]
    wasteful = longest * len(lengths) > MAX_PADDING * total
    return PackedRows(
        positions_T=torch.from_numpy(positions_T).to(device),
        selected_N=torch.from_numpy(selected_N).to(device),
        lengths=tuple(lengths.tolist()),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)).to(device),
        padded_T=None if wasteful else torch.from_numpy(rows_T * longest + positions_T).to(device),
    )
