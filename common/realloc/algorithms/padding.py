"""Rows of different lengths as padded matrices and back.

Shapes: N values of all rows back to back, B rows, T positions of the longest row.
"""

import torch
from torch import Tensor


def row_mask(lengths_B: Tensor) -> Tensor:
    """Where a row has a value: bool [B, T], True on the first `length` positions.

    T is the largest length; [0, 0] without rows.
    """
    width = int(lengths_B.max()) if len(lengths_B) else 0
    positions_T = torch.arange(width, device=lengths_B.device)
    return positions_T.unsqueeze(0) < lengths_B.unsqueeze(1)


def pad_rows(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Spread values over the mask's True positions in row order; zero elsewhere. [B, T]."""
    padded_BT = values_N.new_zeros(mask_BT.shape)
    padded_BT[mask_BT] = values_N
    return padded_BT


def unpad_rows(padded_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The values at the mask's True positions in row order, [N]; undoes `pad_rows`."""
    return padded_BT[mask_BT]
