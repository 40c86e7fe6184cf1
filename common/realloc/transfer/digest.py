"""Digests of what parameters hold, on their own device.

The torch twin of `realloc.reallocation.digest`, which defines the numbers: equal bit by bit.
Elements are mixed tile by tile in scratch that stays in the cache, so the memory that a
digest needs is a few tiles however large the parameters are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from realloc.core.transfer import Blocks, Int64, TransferProgram
from realloc.reallocation.digest import INDEX_MULTIPLIER, MIX_MULTIPLIER
from realloc.transfer.parameters import Parameters
from realloc.transfer.streams import Piece

CPU_TILE_ELEMENTS = 1 << 15
"""Two int64 tiles fill a quarter of a 2 MiB cache; measured best between 2^12 and 2^18."""
CUDA_TILE_ELEMENTS = 1 << 22
_SIGNED = {2: torch.int16, 4: torch.int32}


class DigestSum:
    """Digests per key, summed block by block.

    Blocks may be added in any order and from many transfers; `values` may be read at any time.
    """

    def __init__(self, parameters: Parameters, num_keys: int, dtype: torch.dtype) -> None:
        """Start with zeros.

        Args:
            parameters: what the blocks lie in.
            num_keys: number of sums.
            dtype: element type whose bits count; parameters of another type are cast to it.
        """
        self._parameters = parameters
        self._dtype = dtype
        device = parameters.device
        tile = CUDA_TILE_ELEMENTS if device.type == "cuda" else CPU_TILE_ELEMENTS
        self._bits = torch.empty(tile, dtype=torch.int64, device=device)
        self._index = torch.empty(tile, dtype=torch.int64, device=device)
        self._cast = torch.empty(tile, dtype=dtype, device=device)
        self._steps = torch.arange(tile, dtype=torch.int64, device=device).mul_(INDEX_MULTIPLIER)
        self._sums = torch.zeros(num_keys, dtype=torch.int64, device=device)

    @property
    def scratch_bytes(self) -> int:
        """Memory that this sum holds, whatever it sums."""
        tensors = (self._bits, self._index, self._cast, self._steps, self._sums)
        return sum(tensor.nbytes for tensor in tensors)

    def values(self) -> Int64:
        """The digests so far, int64 [num_keys]."""
        return self._sums.cpu().numpy().copy()

    def add(self, blocks: Blocks, keys: Int64) -> Iterator[int]:
        """Add block b to sum keys[b]; yields the elements done, tile by tile."""
        for block in range(len(blocks)):
            total = self._sums[int(keys[block])]
            for piece, canonical_start, canonical_stride in self._tiles(blocks, block):
                self._add_tile(total, piece, canonical_start, canonical_stride)
                yield piece.num_elements

    def _tiles(self, blocks: Blocks, block: int) -> Iterator[tuple[Piece, int, int]]:
        """A block in rectangles of at most one tile, with their canonical start and stride."""
        rows, cols = int(blocks.rows[block]), int(blocks.cols[block])
        stride = int(blocks.row_stride[block])
        canonical_stride = int(blocks.canonical_stride[block])
        start = int(blocks.start[block])
        canonical_start = int(blocks.canonical_start[block])
        tile = len(self._bits)
        if rows > 1 and cols == stride == canonical_stride:
            rows, cols = 1, rows * cols
        height, width = max(tile // cols, 1), min(cols, tile)
        for row in range(0, rows, height):
            for col in range(0, cols, width):
                piece = Piece(
                    tensor=int(blocks.tensor[block]),
                    start=start + row * stride + col,
                    rows=min(height, rows - row),
                    cols=min(width, cols - col),
                    row_stride=stride,
                    offset=0,
                )
                yield piece, canonical_start + row * canonical_stride + col, canonical_stride

    def _add_tile(
        self, total: torch.Tensor, piece: Piece, canonical_start: int, canonical_stride: int
    ) -> None:
        """total += Σ mix(bits, index); see the definition in `realloc.reallocation.digest`."""
        shape, count = (piece.rows, piece.cols), piece.num_elements
        bits, index = self._bits[:count].view(shape), self._index[:count].view(shape)
        elements = self._parameters.view(piece)
        if elements.dtype != self._dtype:
            elements = self._cast[:count].view(shape).copy_(elements)
        bits.copy_(elements.view(_SIGNED[self._dtype.itemsize]))

        # (start + r·stride + c)·K = start·K + r·stride·K + c·K, all modulo 2^64.
        start = signed(canonical_start * INDEX_MULTIPLIER)
        if piece.rows == 1:
            torch.add(self._steps[: piece.cols], start, out=index[0])
        else:
            row_terms = self._steps[: piece.rows].mul(canonical_stride).add_(start)
            torch.add(row_terms[:, None], self._steps[: piece.cols], out=index)

        bits.bitwise_xor_(index)
        torch.bitwise_right_shift(bits, 32, out=index)
        bits.bitwise_xor_(index).mul_(MIX_MULTIPLIER)
        torch.bitwise_right_shift(bits, 29, out=index)
        total.add_(bits.bitwise_xor_(index).sum())


def signed(value: int) -> int:
    """The int64 that is congruent to a value modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentKeys:
    """Which sum each block of a program's sends counts in."""

    pairs: tuple[tuple[int, int], ...]
    """(destination endpoint, canonical tensor) of each sum."""
    of_block: Int64


def sent_keys(program: TransferProgram) -> SentKeys:
    """One sum per destination endpoint and canonical tensor."""
    sends = program.sends
    peers = np.repeat(sends.peer.astype(np.int64), np.diff(sends.first_block))
    pairs = np.stack((peers, sends.blocks.canonical.astype(np.int64)), axis=1)
    distinct, of_block = np.unique(pairs, axis=0, return_inverse=True)
    return SentKeys(
        pairs=tuple((int(peer), int(canonical)) for peer, canonical in distinct),
        of_block=of_block.reshape(-1).astype(np.int64),
    )


def received_digests(
    program: TransferProgram, parameters: Parameters, dtype: torch.dtype
) -> dict[int, int]:
    """Digest of everything that a program wrote, per canonical tensor (by index)."""
    blocks = program.receives.blocks
    canonical, keys = np.unique(blocks.canonical, return_inverse=True)
    digest = DigestSum(parameters, len(canonical), dtype)
    for _ in digest.add(blocks, keys.astype(np.int64)):
        pass
    return dict(zip(canonical.tolist(), digest.values().tolist(), strict=True))
