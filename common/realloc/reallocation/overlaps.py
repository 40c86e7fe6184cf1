"""Blocks that share elements of a parameter: a layout that has some is wrong."""

import numpy as np

from realloc.core.transfer import Blocks, Int64
from realloc.reallocation.layouts.provider import RankLayout


def overlapping_parameters(table: RankLayout) -> tuple[str, ...]:
    """Names of a rank's parameters in which two blocks hold the same element."""
    blocks = table.blocks
    first = blocks.start
    last = first + (blocks.rows - 1) * blocks.row_stride + blocks.cols
    # Where the spans of blocks are apart, so are the blocks; rows of others may interleave.
    suspects = _shared(blocks.tensor.astype(np.int64), first, last)
    found = []
    for tensor in suspects.tolist():
        starts, ends = _runs(blocks, np.flatnonzero(blocks.tensor == tensor))
        if _shared(np.zeros_like(starts), starts, ends).size:
            found.append(table.parameters[tensor].name)
    return tuple(found)


def _runs(blocks: Blocks, chosen: Int64) -> tuple[Int64, Int64]:
    """First and last + 1 element of every row of some blocks."""
    rows = blocks.rows[chosen]
    row = np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)
    starts = np.repeat(blocks.start[chosen], rows) + row * np.repeat(
        blocks.row_stride[chosen], rows
    )
    return starts, starts + np.repeat(blocks.cols[chosen], rows)


def _shared(group: Int64, first: Int64, last: Int64) -> Int64:
    """Groups in which two intervals share an element."""
    apart = group * (last.max(initial=0) + 1)  # so intervals of different groups never meet
    order = np.lexsort((first, group))
    starts, ends = (first + apart)[order], (last + apart)[order]
    meets = starts[1:] < np.maximum.accumulate(ends)[:-1]
    return np.unique(group[order][1:][meets])
