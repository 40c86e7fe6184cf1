"""Pieces: rectangles of canonical tensors, each saved under a name that says where it lies.

    actor/exp_avg/model.layers.0.mlp.up_proj.weight@128,0

is rows 128 … and columns 0 … of that tensor's first Adam moment; the saved shape says how many.
So a checkpoint can be read without knowing the layout that wrote it: any layout takes from the
pieces what its own table asks for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from realloc.core.transfer import Blocks
from realloc.reallocation.families import CanonicalTensor
from realloc.reallocation.layouts.provider import RankLayout
from services.trainer.weights import Box, block_box


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A rectangle of a canonical tensor that lies within a range of a parameter."""

    tensor: CanonicalTensor
    box: Box
    start: int
    """Its first element, counted from the beginning of the range."""
    row_stride: int
    """Elements from one of its rows to the next."""

    def view(self, owned: Tensor) -> Tensor:
        """The piece within the range's flat values, [rows, cols]."""
        return owned.as_strided(
            (self.box.rows, self.box.cols),
            (self.row_stride, 1),
            owned.storage_offset() + self.start,
        )


def piece_name(model_id: str, kind: str, tensor: str, row: int, col: int) -> str:
    """The name under which a piece is saved."""
    return f"{model_id}/{kind}/{tensor}@{row},{col}"


def parse_piece_name(name: str) -> tuple[str, int, int]:
    """``model/kind/tensor``, first row, first column."""
    prefix, _, place = name.rpartition("@")
    row, _, col = place.partition(",")
    return prefix, int(row), int(col)


def blocks_by_parameter(layout: RankLayout, skip: frozenset[int]) -> dict[str, list[int]]:
    """Numbers of each parameter's blocks, but for those to skip."""
    found: dict[str, list[int]] = {parameter.name: [] for parameter in layout.parameters}
    for index, parameter in enumerate(layout.blocks.tensor.tolist()):
        if index not in skip:
            found[layout.parameters[parameter].name].append(index)
    return found


def copies(own: Blocks, others: Sequence[Blocks]) -> frozenset[int]:
    """Numbers of own blocks that hold the same rectangle as a block of another rank."""
    known = {key for blocks in others for key in _keys(blocks)}
    return frozenset(index for index, key in enumerate(_keys(own)) if key in known)


def _keys(blocks: Blocks) -> list[tuple[int, ...]]:
    columns = (blocks.canonical, blocks.canonical_start, blocks.rows, blocks.cols)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def pieces_of_block(
    blocks: Blocks, index: int, tensor: CanonicalTensor, start: int, end: int
) -> Iterator[Piece]:
    """What of a block lies in elements ``start`` to ``end`` of its parameter: at most three
    rectangles, as a range may begin and end within a row."""
    box = block_box(blocks, index, tensor)
    # A block whose rows follow each other may be given as one row; the box knows better.
    stride = box.cols if blocks.rows[index] == 1 else int(blocks.row_stride[index])
    first = int(blocks.start[index])
    row = max(0, (start - first) // stride)
    while row < box.rows and first + row * stride < end:
        at = first + row * stride
        left, right = max(start - at, 0), min(end - at, box.cols)
        rows = 1
        if left == 0 and right == box.cols:  # take all whole rows at once
            rows = min(box.rows - row, (end - at - box.cols) // stride + 1)
        if left < right:
            yield Piece(
                tensor=tensor,
                box=Box(row=box.row + row, rows=rows, col=box.col + left, cols=right - left),
                start=at + left - start,
                row_stride=stride,
            )
        row += rows
