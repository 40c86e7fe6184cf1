"""Digests on a GPU, at the speed of its memory; see `realloc.transfer.summing`.

A launch costs the host more than a small rectangle costs the GPU, so rectangles are collected
and summed many at once: a table says where each lies.
"""

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

_MOST_COLLECTED = 256
_TILE_ELEMENTS = 8192
_TILE_WIDTHS = (64, 256, SEGMENT_ELEMENTS)
"""A row of a tile touches at most two segments, so it is not wider than one."""
_ALIGNED_BYTES = 16
"""What one thread loads at once, if everything is a multiple of it."""

_Shape = tuple[int, int, bool]
"""Element bytes, width of a tile, whether all is aligned: what a kernel is compiled for."""


class TritonSums:
    """See `DigestSums`. Works on the current stream; holds its sums and a small table."""

    def __init__(self, device: torch.device, num_keys: int) -> None:
        self._device = device
        self._weights = torch.from_numpy(segment_weights().view("int32")).to(device)
        self._sums = torch.zeros(num_keys, dtype=torch.int64, device=device)
        self._collected: dict[_Shape, list[tuple[int, ...]]] = {}

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        itemsize = flat.dtype.itemsize
        for part in _by_segments(rectangle):
            width = next((w for w in _TILE_WIDTHS if w >= part.cols), _TILE_WIDTHS[-1])
            address = flat.data_ptr() + part.start * itemsize
            sizes = address | part.cols * itemsize | part.row_stride * itemsize
            shape = itemsize, width, sizes % _ALIGNED_BYTES == 0
            rows = self._collected.setdefault(shape, [])
            rows.append(
                (
                    address,
                    part.rows,
                    part.cols,
                    part.row_stride,
                    part.canonical_start,
                    part.canonical_stride,
                    key,
                    _num_tiles(part, width),
                )
            )
            if len(rows) == _MOST_COLLECTED:
                self._sum(shape)

    def settle(self) -> None:
        for shape in list(self._collected):
            self._sum(shape)

    def values(self) -> Int64:
        self.settle()
        return self._sums.cpu().numpy().copy()

    def _sum(self, shape: _Shape) -> None:
        """Sum all that was collected of a shape."""
        itemsize, width, aligned = shape
        table = torch.tensor(self._collected.pop(shape), dtype=torch.int64)
        tiles = table[:, -1].cumsum(0)
        table[:, -1] = tiles - table[:, -1]  # tiles before each rectangle
        _add_weighed[(int(tiles[-1]),)](
            table.to(self._device),
            len(table),
            self._weights,
            self._sums,
            COLUMNS=table.shape[1],
            STEPS=len(table).bit_length(),
            ITEMSIZE=itemsize,
            ALIGNED=_ALIGNED_BYTES // itemsize if aligned else 1,
            HEIGHT=_TILE_ELEMENTS // width,
            WIDTH=width,
            SEGMENT=SEGMENT_ELEMENTS,
            SEGMENT_SHIFT=SEGMENT_BITS,
            SEGMENT_BY=SEGMENT_MULTIPLIER,
            MIX_BY=MIX_MULTIPLIER,
        )


def _num_tiles(part: Rectangle, width: int) -> int:
    height = _TILE_ELEMENTS // width
    return -(-part.rows // height) * -(-part.cols // width)


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


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]  # the same
def _find(table, size, tile, COLUMNS: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled
    """The rectangle that a tile is of: the last one with no more tiles before it."""
    low = size * 0
    high = size
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(table + middle * COLUMNS + (COLUMNS - 1))
        further = (before <= tile) & (low < high)
        low = tl.where(further, middle, low)
        high = tl.where(further, high, middle)
    return low


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator,unused-ignore]  # the same
def _add_weighed(  # type: ignore[no-untyped-def]  # compiled
    table, size, weights, sums,
    COLUMNS: tl.constexpr, STEPS: tl.constexpr, ITEMSIZE: tl.constexpr, ALIGNED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr,
    SEGMENT_SHIFT: tl.constexpr, SEGMENT_BY: tl.constexpr, MIX_BY: tl.constexpr,
):  # fmt: skip
    """sums[key] += Σ bits · weight · factor over one tile of HEIGHT × WIDTH elements."""
    program = tl.program_id(0)
    entry = table + _find(table, size, program, COLUMNS, STEPS) * COLUMNS
    address = tl.load(entry)
    rows = tl.load(entry + 1)
    cols = tl.multiple_of(tl.load(entry + 2), ALIGNED)
    row_stride = tl.multiple_of(tl.load(entry + 3), ALIGNED)
    tile = program - tl.load(entry + 7)
    across = (cols + WIDTH - 1) // WIDTH
    row = (tile // across) * HEIGHT + tl.arange(0, HEIGHT)
    first_col = tl.multiple_of((tile % across) * WIDTH, WIDTH)
    col = first_col + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = (row * row_stride)[:, None] + col[None, :]
    if ITEMSIZE == 2:
        flat = tl.multiple_of(address, 2 * ALIGNED).to(tl.pointer_type(tl.int16))
        bits = tl.load(flat + offsets, mask=inside, other=0).to(tl.uint16, bitcast=True)
    else:
        flat = tl.multiple_of(address, 4 * ALIGNED).to(tl.pointer_type(tl.int32))
        bits = tl.load(flat + offsets, mask=inside, other=0).to(tl.uint32, bitcast=True)

    index = tl.load(entry + 4) + row * tl.load(entry + 5) + first_col
    place = (index & (SEGMENT - 1))[:, None] + tl.arange(0, WIDTH)[None, :]
    weight = tl.load(weights + (place & (SEGMENT - 1))).to(tl.uint32, bitcast=True)
    weighed = (bits.to(tl.uint64) * weight.to(tl.uint64)).to(tl.int64, bitcast=True)
    # A row of the tile begins in one segment and may end in the next.
    both = tl.sum(weighed, axis=1)
    second = tl.sum(tl.where(place >= SEGMENT, weighed, 0), axis=1)
    segment = index >> SEGMENT_SHIFT
    total = (both - second) * _factor(segment, SEGMENT_BY, MIX_BY)
    total += second * _factor(segment + 1, SEGMENT_BY, MIX_BY)
    tl.atomic_add(sums + tl.load(entry + 6), tl.sum(total, axis=0))
