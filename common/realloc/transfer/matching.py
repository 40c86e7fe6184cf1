"""Copies between two lists of rectangles that hold the same elements, cut differently."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from realloc.transfer.row_copy import bits_of, copy_rows


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a flat tensor."""

    flat: torch.Tensor
    """1-D."""
    start: int
    """Element of `flat` where the first row begins."""
    rows: int
    cols: int
    row_stride: int

    def view(self) -> torch.Tensor:
        """In place, [rows, cols]."""
        return self.flat.as_strided(
            (self.rows, self.cols),
            (self.row_stride, 1),
            self.flat.storage_offset() + self.start,
        )


def copy_matched(destination: Iterable[Strip], source: Iterable[Strip]) -> None:
    """Copy the elements of one list to the other, in order, in as few copies as may be."""
    for to, of in matched(destination, source):
        if _past_cache(to, of):
            copy_rows(
                bits_of(to.flat), to.start, to.row_stride,
                bits_of(of.flat), of.start, of.row_stride, to.rows, to.cols, True,
            )  # fmt: skip
        else:
            to.view().copy_(of.view())


def _past_cache(to: Strip, of: Strip) -> bool:
    """Whether a copy ends in rows of a parameter in host memory, not in a buffer that is read
    next."""
    on_host = to.flat.device.type == of.flat.device.type == "cpu"
    return on_host and to.rows > 1 and to.row_stride > to.cols and to.flat.dtype == of.flat.dtype


def matched(left: Iterable[Strip], right: Iterable[Strip]) -> Iterator[tuple[Strip, Strip]]:
    """Both lists cut so that the strips of each pair have one shape.

    A run (one row) takes the shape of what it meets. Lists that are alike, or of which one is
    a run, stay whole.
    """
    ours, theirs = deque(left), deque(right)
    while ours and theirs:
        one, other = ours.popleft(), theirs.popleft()
        rows, cols = _common_shape(one, other)
        yield _front(one, rows, cols), _front(other, rows, cols)
        ours.extendleft(_behind(one, rows, cols))
        theirs.extendleft(_behind(other, rows, cols))
    assert len(ours) == len(theirs) == 0, "the lists hold different numbers of elements"


def _common_shape(one: Strip, other: Strip) -> tuple[int, int]:
    """The shape of the largest rectangle with which both begin."""
    if one.rows == 1 and other.rows == 1:
        return 1, min(one.cols, other.cols)
    if one.cols == other.cols:
        return min(one.rows, other.rows), one.cols
    if one.rows == 1 or other.rows == 1:
        run, block = (one, other) if one.rows == 1 else (other, one)
        rows = min(block.rows, run.cols // block.cols)
        if rows:
            return rows, block.cols
    return 1, min(one.cols, other.cols)


def _front(strip: Strip, rows: int, cols: int) -> Strip:
    """The first rows × cols elements."""
    if rows == strip.rows and cols == strip.cols:
        return strip
    stride = strip.row_stride if strip.rows > 1 else cols
    return Strip(strip.flat, strip.start, rows, cols, stride)


def _behind(strip: Strip, rows: int, cols: int) -> list[Strip]:
    """What follows the first rows × cols elements, the last of it first."""
    if strip.rows == 1:
        taken = rows * cols
        left = strip.cols - taken
        return [Strip(strip.flat, strip.start + taken, 1, left, left)] if left else []
    if cols < strip.cols:
        assert rows == 1, "a part of a row is taken by itself"
        left = strip.cols - cols
        row = Strip(strip.flat, strip.start + cols, 1, left, left)
        return [*_behind(strip, 1, strip.cols), row]
    if rows == strip.rows:
        return []
    start = strip.start + rows * strip.row_stride
    return [Strip(strip.flat, start, strip.rows - rows, strip.cols, strip.row_stride)]
