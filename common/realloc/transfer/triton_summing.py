"""Digests on a GPU, at the speed of its memory; see `realloc.transfer.summing`."""

import torch
import triton  # type: ignore[import-not-found,unused-ignore]  # comes with torch for CUDA only
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]  # the same

from realloc.core.transfer import Int64
from realloc.reallocation.digest import (
    MIX_MULTIPLIER,
    SEGMENT_BITS,
    SEGMENT_ELEMENTS,
    SEGMENT_MULTIPLIER,
    segment_weights,
)
from realloc.transfer.summing import Rectangle

_TILE_ELEMENTS = 8192
_TILE_WIDTHS = (64, 256, SEGMENT_ELEMENTS)
"""A row of a tile touches at most two segments, so it is not wider than one."""
_BITS = {2: torch.int16, 4: torch.int32}


class TritonSums:
    """See `DigestSums`. One kernel per rectangle, on the current stream."""

    def __init__(self, device: torch.device, num_keys: int) -> None:
        self._weights = torch.from_numpy(segment_weights().view("int32")).to(device)
        self._sums = torch.zeros(num_keys, dtype=torch.int64, device=device)

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        for part in _by_segments(rectangle):
            width = next((w for w in _TILE_WIDTHS if w >= part.cols), _TILE_WIDTHS[-1])
            height = _TILE_ELEMENTS // width
            grid = (triton.cdiv(part.rows, height) * triton.cdiv(part.cols, width),)
            _add_weighed[grid](
                flat.view(_BITS[flat.dtype.itemsize]),
                part.start,
                part.rows,
                part.cols,
                part.row_stride,
                part.canonical_start,
                part.canonical_stride,
                self._weights,
                self._sums,
                key,
                HEIGHT=height,
                WIDTH=width,
                SEGMENT=SEGMENT_ELEMENTS,
                SEGMENT_SHIFT=SEGMENT_BITS,
                SEGMENT_BY=SEGMENT_MULTIPLIER,
                MIX_BY=MIX_MULTIPLIER,
            )

    def values(self) -> Int64:
        return self._sums.cpu().numpy().copy()


def _by_segments(rectangle: Rectangle) -> list[Rectangle]:
    """A long run as rows of one segment's length, and what is left over."""
    if rectangle.rows > 1 or rectangle.cols <= SEGMENT_ELEMENTS:
        return [rectangle]
    rows, rest = divmod(rectangle.cols, SEGMENT_ELEMENTS)
    done = rows * SEGMENT_ELEMENTS
    whole = Rectangle(
        start=rectangle.start,
        rows=rows,
        cols=SEGMENT_ELEMENTS,
        row_stride=SEGMENT_ELEMENTS,
        canonical_start=rectangle.canonical_start,
        canonical_stride=SEGMENT_ELEMENTS,
    )
    if not rest:
        return [whole]
    tail = Rectangle(
        start=rectangle.start + done,
        rows=1,
        cols=rest,
        row_stride=rest,
        canonical_start=rectangle.canonical_start + done,
        canonical_stride=rest,
    )
    return [whole, tail]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]  # triton has no types
def _factor(segment, SEGMENT_BY: tl.constexpr, MIX_BY: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled
    mixed = segment * SEGMENT_BY
    mixed = (mixed ^ (mixed >> 32)) * MIX_BY
    return (mixed ^ (mixed >> 29)) | 1


@triton.jit(do_not_specialize=["rows", "canonical_start", "canonical_stride", "key"])  # type: ignore[untyped-decorator,unused-ignore]  # the same
def _add_weighed(  # type: ignore[no-untyped-def]  # compiled
    flat, start, rows, cols, row_stride, canonical_start, canonical_stride, weights, sums, key,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr,
    SEGMENT_SHIFT: tl.constexpr, SEGMENT_BY: tl.constexpr, MIX_BY: tl.constexpr,
):  # fmt: skip
    """sums[key] += Σ bits · weight · factor over one tile of HEIGHT × WIDTH elements."""
    across = tl.cdiv(cols, WIDTH)
    tile = tl.program_id(0)
    row = (tile // across).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    first_col = (tile % across).to(tl.int64) * WIDTH
    col = first_col + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = start + row[:, None] * row_stride + col[None, :]
    bits = tl.load(flat + offsets, mask=inside, other=0)
    if bits.dtype == tl.int16:
        unsigned = bits.to(tl.uint16, bitcast=True).to(tl.uint64)
    else:
        unsigned = bits.to(tl.uint32, bitcast=True).to(tl.uint64)

    index = canonical_start + row * canonical_stride + first_col
    place = (index & (SEGMENT - 1))[:, None] + tl.arange(0, WIDTH)[None, :]
    weight = tl.load(weights + (place & (SEGMENT - 1))).to(tl.uint32, bitcast=True).to(tl.uint64)
    weighed = (unsigned * weight).to(tl.int64, bitcast=True)
    # A row of the tile begins in one segment and may end in the next.
    both = tl.sum(weighed, axis=1)
    second = tl.sum(tl.where(place >= SEGMENT, weighed, 0), axis=1)
    segment = index >> SEGMENT_SHIFT
    total = (both - second) * _factor(segment, SEGMENT_BY, MIX_BY)
    total += second * _factor(segment + 1, SEGMENT_BY, MIX_BY)
    tl.atomic_add(sums + key, tl.sum(total, axis=0))
