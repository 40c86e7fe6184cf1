"""Digests on a GPU, at the speed of its memory; see `realloc.transfer.summing`.

A launch costs the host more than a small rectangle costs the GPU, so rectangles are collected
and summed many at once: a table says where each lies.
"""

from dataclasses import dataclass

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
_STEP_ELEMENTS = 2048
"""More would not fit the registers of 128 threads."""
_STEPS = 16
_WIDTHS = (64, 256, SEGMENT_ELEMENTS)
"""Of a tile. A row of it touches at most two segments, so it is not wider than one."""
_ALIGNED_BYTES = 16
"""What one thread loads at once, if everything is a multiple of it."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a kernel is compiled for."""

    itemsize: int
    width: int
    """Of a tile."""
    aligned: bool
    """Whether every row begins and ends at a multiple of what a thread loads at once."""
    segmented: bool
    """Whether every row of a tile is one segment of the canonical tensor, or its beginning."""

    @property
    def height(self) -> int:
        """Rows of a step."""
        return _STEP_ELEMENTS // self.width

    def num_tiles(self, part: Rectangle) -> int:
        return -(-part.rows // (self.height * _STEPS)) * -(-part.cols // self.width)


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
            address = flat.data_ptr() + part.start * itemsize
            shape = _shape(part, address, itemsize)
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
                    shape.num_tiles(part),
                )
            )
            if len(rows) == _MOST_COLLECTED:
                self._sum(shape)

    def add_fixed(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        self.add(key, flat, rectangle)

    def settle(self) -> None:
        for shape in list(self._collected):
            self._sum(shape)

    def values(self) -> Int64:
        self.settle()
        return self._sums.cpu().numpy().copy()

    def _sum(self, shape: _Shape) -> None:
        """Sum all that was collected of a shape."""
        table = torch.tensor(self._collected.pop(shape), dtype=torch.int64)
        tiles = table[:, -1].cumsum(0)
        table[:, -1] = tiles - table[:, -1]  # tiles before each rectangle
        with torch.cuda.device_of(self._sums):  # type: ignore[no-untyped-call]  # torch declares none
            _add_weighed[(int(tiles[-1]),)](
                table.to(self._device),
                len(table),
                self._weights,
                self._sums,
                COLUMNS=table.shape[1],
                SEARCH_STEPS=_MOST_COLLECTED.bit_length(),
                ITEMSIZE=shape.itemsize,
                ALIGNED=_ALIGNED_BYTES // shape.itemsize if shape.aligned else 1,
                SEGMENTED=shape.segmented,
                STEPS=_STEPS,
                HEIGHT=shape.height,
                WIDTH=shape.width,
                SEGMENT=SEGMENT_ELEMENTS,
                SEGMENT_SHIFT=SEGMENT_BITS,
                SEGMENT_BY=SEGMENT_MULTIPLIER,
                MIX_BY=MIX_MULTIPLIER,
            )


def _shape(part: Rectangle, address: int, itemsize: int) -> _Shape:
    """The kernel for a rectangle of elements that begin at an address."""
    width = next((w for w in _WIDTHS if w >= part.cols), _WIDTHS[-1])
    sizes = address | part.cols * itemsize | part.row_stride * itemsize
    canonical = part.canonical_start | (part.canonical_stride if part.rows > 1 else 0)
    return _Shape(
        itemsize=itemsize,
        width=width,
        aligned=sizes % _ALIGNED_BYTES == 0,
        segmented=width == SEGMENT_ELEMENTS and canonical % SEGMENT_ELEMENTS == 0,
    )


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


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]  # the same
def _load(address, offsets, inside, ITEMSIZE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled
    """Bits of elements, uint64; 0 outside."""
    if ITEMSIZE == 2:
        flat = tl.multiple_of(address, 2 * ALIGNED).to(tl.pointer_type(tl.int16))
        bits = tl.load(flat + offsets, mask=inside, other=0).to(tl.uint16, bitcast=True)
    else:
        flat = tl.multiple_of(address, 4 * ALIGNED).to(tl.pointer_type(tl.int32))
        bits = tl.load(flat + offsets, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return bits.to(tl.uint64)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator,unused-ignore]  # the same
def _add_weighed(  # type: ignore[no-untyped-def]  # compiled
    table, size, weights, sums,
    COLUMNS: tl.constexpr, SEARCH_STEPS: tl.constexpr, ITEMSIZE: tl.constexpr,
    ALIGNED: tl.constexpr, SEGMENTED: tl.constexpr, STEPS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, SEGMENT: tl.constexpr, SEGMENT_SHIFT: tl.constexpr,
    SEGMENT_BY: tl.constexpr, MIX_BY: tl.constexpr,
):  # fmt: skip
    """sums[key] += Σ bits · weight · factor over a tile: STEPS times HEIGHT rows of WIDTH."""
    program = tl.program_id(0)
    entry = table + _find(table, size, program, COLUMNS, SEARCH_STEPS) * COLUMNS
    address = tl.load(entry)
    rows = tl.load(entry + 1)
    cols = tl.multiple_of(tl.load(entry + 2), ALIGNED)
    row_stride = tl.multiple_of(tl.load(entry + 3), ALIGNED)
    canonical_start = tl.load(entry + 4)
    canonical_stride = tl.load(entry + 5)
    tile = program - tl.load(entry + 7)
    across = (cols + WIDTH - 1) // WIDTH
    first_row = (tile // across) * (HEIGHT * STEPS)
    first_col = tl.multiple_of((tile % across) * WIDTH, WIDTH)
    lane = tl.arange(0, WIDTH)
    col = first_col + lane
    within = (col < cols)[None, :]
    first_weight = tl.load(weights + lane).to(tl.uint32, bitcast=True).to(tl.uint64)
    total = tl.zeros([HEIGHT, WIDTH], tl.int64)
    for step in range(STEPS):
        row = first_row + step * HEIGHT + tl.arange(0, HEIGHT)
        inside = (row < rows)[:, None] & within
        bits = _load(address, (row * row_stride)[:, None] + col[None, :], inside, ITEMSIZE, ALIGNED)
        index = canonical_start + row * canonical_stride + first_col
        segment = index >> SEGMENT_SHIFT
        factor = _factor(segment, SEGMENT_BY, MIX_BY)[:, None]
        if SEGMENTED:
            weighed = bits * first_weight[None, :]
        else:
            # A row of the tile begins in one segment and may end in the next.
            place = (index & (SEGMENT - 1)).to(tl.int32)[:, None] + lane[None, :]
            weight = tl.load(weights + (place & (SEGMENT - 1))).to(tl.uint32, bitcast=True)
            weighed = bits * weight.to(tl.uint64)
            following = _factor(segment + 1, SEGMENT_BY, MIX_BY)[:, None]
            factor = tl.where(place >= SEGMENT, following, factor)
        total += weighed.to(tl.int64, bitcast=True) * factor
    tl.atomic_add(sums + tl.load(entry + 6), tl.sum(tl.sum(total, axis=1), axis=0))
