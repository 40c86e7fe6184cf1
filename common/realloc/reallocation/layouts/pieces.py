"""How one rank stores a part of a model: local tensors built of pieces of canonical ones.

Every engine's parameter, seen as rows of equal width, is a stack of *segments*: rectangles
of canonical tensors, one below the other, with unused rows for padding. Fused qkv, gate and
up, experts stacked to three dimensions and padded vocabularies are all of this form, and so
is a matrix cut by columns (its rows are just shorter than the canonical ones).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from realloc.core.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``row … row + rows`` and columns ``col … col + width`` of a canonical tensor."""

    tensor: int
    """Index into the section's list of canonical tensors (`families.layer_tensors` or
    `families.outer_tensors`)."""
    row: int
    rows: int
    col: int
    local_row: int
    """Row of the local tensor where the segment begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTensor:
    """One parameter of a rank."""

    name: str
    shape: tuple[int, ...]
    width: int
    """Elements of one row of the storage."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box of a canonical tensor before it has its place in a local one."""

    tensor: int
    row: int
    rows: int
    col: int


def stack(
    name: str,
    rectangles: Iterable[Rectangle],
    *,
    width: int,
    vector: bool = False,
    shape: tuple[int, ...] | None = None,
) -> LocalTensor:
    """A local tensor of rectangles of equal width, stacked in the given order.

    Args:
        vector: the parameter is one-dimensional (its rows have one element).
        shape: shape of the parameter where it is not ``[rows, width]``; may hold more rows
            than the rectangles fill, which are padding.
    """
    segments = []
    local_row = 0
    for rectangle in rectangles:
        if rectangle.rows > 0:
            segments.append(
                Segment(rectangle.tensor, rectangle.row, rectangle.rows, rectangle.col, local_row)
            )
        local_row += rectangle.rows
    if shape is None:
        shape = (local_row,) if vector else (local_row, width)
    return LocalTensor(name=name, shape=shape, width=width, segments=tuple(segments))


def divide(size: int, parts: int, what: str) -> int:
    """``size / parts``.

    Raises:
        InvalidInput: the parts are not equal; ``what`` names the size.
    """
    if size % parts:
        raise InvalidInput.at("strategy", f"{what} is {size} and does not divide by {parts}")
    return size // parts


def clip(rectangles: Iterable[Rectangle], first: int, last: int) -> list[Rectangle]:
    """The parts of stacked rectangles that lie in rows ``first … last`` of the stack."""
    clipped = []
    position = 0
    for rectangle in rectangles:
        begin = max(first - position, 0)
        end = min(last - position, rectangle.rows)
        if begin < end:
            clipped.append(
                Rectangle(rectangle.tensor, rectangle.row + begin, end - begin, rectangle.col)
            )
        position += rectangle.rows
    return clipped
