"""Ways to sum the digest of a rectangle: compiled on a CPU, in Triton on a GPU, in torch anywhere.

`realloc.reallocation.digest` defines the numbers; all give them bit by bit. The compiled one and
Triton's read each element once and write nothing; torch passes over its scratch several times.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from importlib.util import find_spec
from typing import Protocol

import numba  # type: ignore[import-untyped]  # ships no types
import numpy as np
import torch
from numpy.typing import NDArray

from realloc.core.transfer import Int64
from realloc.reallocation.digest import (
    MIX_MULTIPLIER,
    SEGMENT_BITS,
    SEGMENT_ELEMENTS,
    SEGMENT_MULTIPLIER,
    segment_weights,
)
from realloc.transfer.matching import Strip
from realloc.transfer.row_copy import SIGNED, bits_of, copy_rows

TORCH_TILE_ELEMENTS = 1 << 18
"""Three int64 tiles are 6 MiB, the only memory that a digest takes beside its sums."""
COPY_TILE_BYTES = 128 << 10
"""What is copied before it is summed: source and target together fit a core's cache (L2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """Some rows of a flat tensor, and their place in a canonical tensor."""

    start: int
    """Element of the flat tensor."""
    rows: int
    cols: int
    row_stride: int
    canonical_start: int
    canonical_stride: int

    @property
    def num_elements(self) -> int:
        return self.rows * self.cols

    def packed(self, start: int) -> "Rectangle":
        """The same elements, in a chunk that holds them without gaps from element `start` on."""
        return replace(self, start=start, row_stride=self.cols)

    def tiles(self, most: int) -> Iterator["Rectangle"]:
        """The rectangle in parts of at most `most` elements each."""
        height, width = max(most // self.cols, 1), min(self.cols, most)
        for row in range(0, self.rows, height):
            for col in range(0, self.cols, width):
                yield replace(
                    self,
                    start=self.start + row * self.row_stride + col,
                    rows=min(height, self.rows - row),
                    cols=min(width, self.cols - col),
                    canonical_start=self.canonical_start + row * self.canonical_stride + col,
                )


class Summed(Enum):
    """Which side of a copy a digest vouches for."""

    SOURCE = "what was read"
    TARGET = "what was written"


class DigestSums(Protocol):
    """Sums of weighed elements, by key."""

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        """Add a rectangle of a flat tensor, elements of 2 or 4 bytes, to a sum."""
        ...

    def add_fixed(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        """As `add`, of elements that nobody writes: what is added to several sums may be read
        once."""
        ...

    def settle(self) -> None:
        """Read all that was added, if it was not yet: its memory may change afterwards."""
        ...

    def values(self) -> Int64:
        """The sums so far, int64 [num_keys]."""
        ...


def sums_on(device: torch.device, num_keys: int) -> DigestSums:
    """The fastest sums for elements that lie on a device."""
    if device.type == "cpu":
        return CompiledSums(num_keys)
    if device.type == "cuda" and find_spec("triton") is not None:
        from realloc.transfer.triton_summing import TritonSums  # imports what only GPUs have

        return TritonSums(device, num_keys)
    return TorchSums(device, num_keys)


class CompiledSums:
    """See `DigestSums`; for elements in host memory. Releases the GIL."""

    def __init__(self, num_keys: int) -> None:
        self._sums = np.zeros(num_keys, dtype=np.int64)
        self._weights = segment_weights()
        self._known: dict[tuple[int, Rectangle], Int64] = {}

    def add_fixed(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        place, total = (flat.data_ptr(), rectangle), self._sums[key : key + 1]
        if place not in self._known:
            before = total.copy()
            self.add(key, flat, rectangle)
            self._known[place] = total - before
        else:
            total += self._known[place]

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        _add_weighed(
            bits_of(flat),
            rectangle.start,
            rectangle.rows,
            rectangle.cols,
            rectangle.row_stride,
            rectangle.canonical_start,
            rectangle.canonical_stride,
            self._weights,
            self._sums,
            key,
        )

    def add_copied(
        self,
        key: int,
        target: Strip,
        source: Strip,
        canonical_start: int,
        canonical_stride: int,
        summed: Summed,
    ) -> None:
        """Copy a rectangle to one of its shape, and add what was read or what was written."""
        _copy_weighed(
            bits_of(target.flat),
            target.start,
            target.row_stride,
            bits_of(source.flat),
            source.start,
            source.row_stride,
            source.rows,
            source.cols,
            max(1, COPY_TILE_BYTES // source.flat.itemsize),
            summed is Summed.TARGET,
            canonical_start,
            canonical_stride,
            self._weights,
            self._sums,
            key,
        )

    def settle(self) -> None:
        """All has been read."""

    def values(self) -> Int64:
        return self._sums.copy()


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba has no types
def _add_weighed(
    bits: NDArray[np.unsignedinteger],
    start: int,
    rows: int,
    cols: int,
    row_stride: int,
    canonical_start: int,
    canonical_stride: int,
    weights: NDArray[np.uint32],
    sums: Int64,
    key: int,
) -> None:
    """sums[key] += Σ bits · weight · factor, segment by segment of each row."""
    total = np.int64(0)
    for row in range(rows):
        first, index = start + row * row_stride, canonical_start + row * canonical_stride
        end = first + cols
        while first < end:
            place = index & (SEGMENT_ELEMENTS - 1)
            width = min(SEGMENT_ELEMENTS - place, end - first)
            # Slices indexed from 0 are what makes the compiler use vectors.
            elements, weight = bits[first : first + width], weights[place : place + width]
            segment_sum = np.uint64(0)
            for col in range(width):
                segment_sum += np.uint64(elements[col]) * np.uint64(weight[col])
            factor = np.int64(index >> SEGMENT_BITS) * np.int64(SEGMENT_MULTIPLIER)
            factor = (factor ^ (factor >> np.int64(32))) * np.int64(MIX_MULTIPLIER)
            factor = (factor ^ (factor >> np.int64(29))) | np.int64(1)
            total += np.int64(segment_sum) * factor
            first += width
            index += width
    sums[key] += total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # the same
def _copy_weighed(
    target: NDArray[np.unsignedinteger],
    target_start: int,
    target_stride: int,
    source: NDArray[np.unsignedinteger],
    source_start: int,
    source_stride: int,
    rows: int,
    cols: int,
    tile: int,
    sum_target: bool,
    canonical_start: int,
    canonical_stride: int,
    weights: NDArray[np.uint32],
    sums: Int64,
    key: int,
) -> None:
    """Copy `rows` × `cols`, and sum each tile of some rows or a part of one after its copy."""
    height, width = max(tile // cols, 1), min(cols, tile)
    for row in range(0, rows, height):
        tall = min(height, rows - row)
        for col in range(0, cols, width):
            wide = min(width, cols - col)
            to = target_start + row * target_stride + col
            of = source_start + row * source_stride + col
            copy_rows(
                target, to, target_stride, source, of, source_stride, tall, wide,
                target_stride > cols and not sum_target,
            )  # fmt: skip
            index = canonical_start + row * canonical_stride + col
            if sum_target:
                _add_weighed(
                    target, to, tall, wide, target_stride, index, canonical_stride,
                    weights, sums, key,
                )  # fmt: skip
            else:
                _add_weighed(
                    source, of, tall, wide, source_stride, index, canonical_stride,
                    weights, sums, key,
                )  # fmt: skip


class TorchSums:
    """See `DigestSums`; for any device, in scratch of a fixed size."""

    def __init__(
        self, device: torch.device, num_keys: int, tile_elements: int = TORCH_TILE_ELEMENTS
    ) -> None:
        self._bits = torch.empty(tile_elements, dtype=torch.int64, device=device)
        self._index = torch.empty_like(self._bits)
        self._scratch = torch.empty_like(self._bits)
        self._weights = torch.from_numpy(segment_weights().astype(np.int64)).to(device)
        self._sums = torch.zeros(num_keys, dtype=torch.int64, device=device)

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        for tile in rectangle.tiles(len(self._bits)):
            self._sums[key].add_(self._weighed(flat, tile).sum())

    def add_fixed(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        self.add(key, flat, rectangle)

    def settle(self) -> None:
        """All has been read, in the order of the stream."""

    def values(self) -> Int64:
        return self._sums.cpu().numpy().copy()

    def _weighed(self, flat: torch.Tensor, tile: Rectangle) -> torch.Tensor:
        rows, cols, size = tile.rows, tile.cols, tile.num_elements
        bits, index, scratch = (t[:size] for t in (self._bits, self._index, self._scratch))
        elements = flat.as_strided(
            (rows, cols), (tile.row_stride, 1), flat.storage_offset() + tile.start
        )
        itemsize = elements.dtype.itemsize
        bits.view(rows, cols).copy_(elements.view(SIGNED[itemsize]))
        bits.bitwise_and_((1 << 8 * itemsize) - 1)

        row_index = torch.arange(rows, device=flat.device).mul_(tile.canonical_stride)
        row_index.add_(tile.canonical_start)
        torch.add(
            row_index[:, None],
            torch.arange(cols, device=flat.device),
            out=index.view(rows, cols),
        )
        torch.bitwise_and(index, SEGMENT_ELEMENTS - 1, out=scratch)
        bits.mul_(self._weights[scratch])

        index.bitwise_right_shift_(SEGMENT_BITS).mul_(SEGMENT_MULTIPLIER)
        torch.bitwise_right_shift(index, 32, out=scratch)
        index.bitwise_xor_(scratch).mul_(MIX_MULTIPLIER)
        torch.bitwise_right_shift(index, 29, out=scratch)
        index.bitwise_xor_(scratch).bitwise_or_(1)
        return bits.mul_(index)
