"""Digests of what programs send and of what they wrote, on the parameters' own device.

The torch twin of `realloc.reallocation.digest`, which defines the numbers. The memory that a
digest needs is a few tiles, however large the parameters are.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from realloc.core.transfer import Blocks, Int64, TransferProgram
from realloc.transfer.mixing import Rectangle, mixer_for
from realloc.transfer.parameters import Parameters


class BlockDigests:
    """The digest of each of some blocks, summed step by step."""

    def __init__(self, parameters: Parameters, num_blocks: int, dtype: torch.dtype) -> None:
        """Start with zeros.

        Args:
            parameters: what the blocks lie in.
            num_blocks: number of digests.
            dtype: element type whose bits count; parameters of another type are cast to it.
        """
        self._parameters = parameters
        self._dtype = dtype
        self._mixer = mixer_for(parameters.device, num_blocks)
        self._scratch: torch.Tensor | None = None

    def values(self) -> Int64:
        """The digests so far, int64 [num_blocks]."""
        return self._mixer.values()

    def add(self, blocks: Blocks, chosen: Int64, *, first_number: int) -> Iterator[None]:
        """Digest block chosen[i] as number first_number + i; one small step per item."""
        for number, block in enumerate(chosen.tolist(), first_number):
            flat = self._parameters.flat[int(blocks.tensor[block])]
            for rectangle in rectangles(blocks, block, self._mixer.tile_elements):
                if flat.dtype == self._dtype:
                    self._mixer.add(number, flat, rectangle)
                else:
                    self._mixer.add(number, self._cast(flat, rectangle), packed(rectangle))
                yield

    def _cast(self, flat: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
        """The rectangle's elements in the type that counts, packed in scratch."""
        if self._scratch is None:
            self._scratch = torch.empty(
                self._mixer.tile_elements, dtype=self._dtype, device=flat.device
            )
        shape = (rectangle.rows, rectangle.cols)
        start = flat.storage_offset() + rectangle.start
        elements = flat.as_strided(shape, (rectangle.row_stride, 1), start)
        self._scratch[: elements.numel()].view(shape).copy_(elements)
        return self._scratch


def rectangles(blocks: Blocks, block: int, tile: int) -> Iterator[Rectangle]:
    """A block in rectangles of at most `tile` elements each."""
    rows, cols = int(blocks.rows[block]), int(blocks.cols[block])
    stride = int(blocks.row_stride[block])
    canonical_stride = int(blocks.canonical_stride[block])
    if rows > 1 and cols == stride == canonical_stride:
        rows, cols = 1, rows * cols
    height, width = max(tile // cols, 1), min(cols, tile)
    for row in range(0, rows, height):
        for col in range(0, cols, width):
            yield Rectangle(
                start=int(blocks.start[block]) + row * stride + col,
                rows=min(height, rows - row),
                cols=min(width, cols - col),
                row_stride=stride,
                canonical_start=int(blocks.canonical_start[block]) + row * canonical_stride + col,
                canonical_stride=canonical_stride,
            )


def packed(rectangle: Rectangle) -> Rectangle:
    """The rectangle at the beginning of scratch, without gaps."""
    return replace(rectangle, start=0, row_stride=rectangle.cols)


class SentDigests:
    """Digests of what a program sends, by destination endpoint and canonical tensor.

    A block that goes to several endpoints is read once.
    """

    def __init__(
        self, program: TransferProgram, parameters: Parameters, dtype: torch.dtype
    ) -> None:
        """Group the blocks of all sends; read none yet."""
        sends = program.sends
        blocks = sends.blocks
        places = np.stack(
            (blocks.tensor, blocks.start, blocks.rows, blocks.cols, blocks.row_stride,
             blocks.canonical, blocks.canonical_start, blocks.canonical_stride),
            axis=1,
        )  # fmt: skip
        # Sorted by tensor, so blocks of destination tensors, which are passed on, come last.
        _, distinct, number = np.unique(places, axis=0, return_index=True, return_inverse=True)
        relayed = int((blocks.tensor[distinct] < len(program.source_tensors)).sum())
        self._own, self._relayed = np.split(distinct, [relayed])
        self._number = number.reshape(-1)
        self._peers = np.repeat(sends.peer.astype(np.int64), np.diff(sends.first_block))
        self._blocks = blocks
        self._digests = BlockDigests(parameters, len(distinct), dtype)

    def own_steps(self) -> Iterator[None]:
        """The work on source parameters, step by step."""
        return self._digests.add(self._blocks, self._own, first_number=0)

    def relayed_steps(self) -> Iterator[None]:
        """The work on what was received and passed on; it has arrived."""
        return self._digests.add(self._blocks, self._relayed, first_number=len(self._own))

    def values(self) -> dict[tuple[int, int], int]:
        """Sum per (destination endpoint, canonical tensor), signed 64 bits."""
        pairs = np.stack((self._peers, self._blocks.canonical.astype(np.int64)), axis=1)
        keys, sums = summed(pairs, self._digests.values()[self._number])
        return {
            (peer, canonical): total
            for (peer, canonical), total in zip(keys.tolist(), sums.tolist(), strict=True)
        }


class ReceivedDigests:
    """Digests of all that a program wrote, by canonical tensor."""

    def __init__(
        self, program: TransferProgram, parameters: Parameters, dtype: torch.dtype
    ) -> None:
        self._blocks = program.receives.blocks
        self._digests = BlockDigests(parameters, len(self._blocks), dtype)

    def steps(self) -> Iterator[None]:
        """The work, step by step; all has arrived."""
        every = np.arange(len(self._blocks), dtype=np.int64)
        return self._digests.add(self._blocks, every, first_number=0)

    def values(self) -> dict[int, int]:
        """Sum per canonical tensor, signed 64 bits."""
        labels = self._blocks.canonical.astype(np.int64)[:, None]
        keys, sums = summed(labels, self._digests.values())
        return dict(zip(keys[:, 0].tolist(), sums.tolist(), strict=True))


def summed(labels: Int64, values: Int64) -> tuple[Int64, Int64]:
    """Distinct rows of labels [N, L], and the sum of the values [N] of each, modulo 2^64."""
    keys, of_value = np.unique(labels, axis=0, return_inverse=True)
    sums = np.zeros(len(keys), dtype=np.int64)
    np.add.at(sums, of_value.reshape(-1), values)
    return keys, sums
