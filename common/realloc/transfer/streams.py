"""Messages as streams of chunks: what is packed, sent and unpacked at once.

All messages of a pair of endpoints in one round are one *stream*: their blocks packed back to
back. A stream is cut into chunks (`realloc.transfer.cuts`), alike on both sides although their
blocks differ: a slice that is one run here may be many rows there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from realloc.core.transfer import Int32, Int64, Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A strided rectangle of one local parameter, and its place in a chunk."""

    tensor: int
    start: int
    rows: int
    cols: int
    row_stride: int
    offset: int
    """Element of the chunk where the piece begins."""

    @property
    def num_elements(self) -> int:
        return self.rows * self.cols

    @property
    def contiguous(self) -> bool:
        return self.rows == 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """What one pair of endpoints moves in one round."""

    peer: int
    round: int
    tensor: Int32
    start: Int64
    rows: Int64
    cols: Int64
    row_stride: Int64
    offset: Int64
    """[B + 1] element of the stream where each block begins, and the stream's length."""
    cut: Int64
    """[C] elements where a long run of memory begins or ends on either side; see `Messages`."""
    message_block: Int64
    """[M] the blocks of the program's messages, before adjacent ones were merged."""
    message_offset: Int64
    """[M + 1] element of the stream where each of these begins."""

    @property
    def num_elements(self) -> int:
        return int(self.offset[-1])

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The blocks, and parts of blocks, that elements first … last − 1 consist of."""
        for block, cut in cuts_between(self.offset, self.cols, first, last):
            yield Piece(
                tensor=int(self.tensor[block]),
                start=int(self.start[block]) + cut.row * int(self.row_stride[block]) + cut.col,
                rows=cut.rows,
                cols=cut.cols,
                row_stride=int(self.row_stride[block]),
                offset=cut.offset,
            )


@dataclass(frozen=True, slots=True)
class Cut:
    """A rectangle of a block of a stream."""

    row: int
    col: int
    """Of the block, where the rectangle begins."""
    rows: int
    cols: int
    offset: int
    """Element of the cut-out range where it begins."""


def cuts_between(offset: Int64, cols: Int64, first: int, last: int) -> Iterator[tuple[int, Cut]]:
    """What elements first … last − 1 are of blocks laid end to end: number of block, rectangle.

    Args:
        offset: [B + 1] element where each block begins, and the end of the last.
        cols: [B] length of the rows of each block.
    """
    begin = int(np.searchsorted(offset, first, side="right")) - 1
    end = int(np.searchsorted(offset, last, side="left"))
    for block in range(begin, end):
        at = int(offset[block])
        until = min(last, int(offset[block + 1]))
        for cut in _rectangles(int(cols[block]), max(first, at) - at, until - at, at - first):
            yield block, cut


def _rectangles(cols: int, first: int, last: int, shift: int) -> Iterator[Cut]:
    """Elements first … last − 1 of a block of rows, as at most three rectangles."""
    while first < last:
        row, col = divmod(first, cols)
        whole_rows = (last - first) // cols if col == 0 else 0
        width = cols if whole_rows else min(cols - col, last - first)
        rows = max(whole_rows, 1)
        yield Cut(row, col, rows, width, first + shift)
        first += rows * width


def streams_of(messages: Messages) -> list[Stream]:
    """The streams of one endpoint's sends or receives, in order of round and peer."""
    if len(messages) == 0:
        return []
    peer, rounds = messages.peer.astype(np.int64), messages.round.astype(np.int64)
    order = np.lexsort((peer, rounds))
    new = np.flatnonzero(
        np.diff(rounds[order], prepend=-1) | np.diff(peer[order], prepend=-1),
    )
    streams = []
    for members in np.split(order, new[1:]):
        streams.append(_stream(messages, members))
    return [stream for stream in streams if stream.num_elements]


def concatenated_ranges(first: Int64, last: Int64) -> Int64:
    """The indices first[0] … last[0] − 1, first[1] … last[1] − 1 and so on."""
    counts = last - first
    shift = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
    indices: Int64 = np.arange(int(counts.sum()), dtype=np.int64) + shift
    return indices


def _stream(messages: Messages, members: Int64) -> Stream:
    blocks = messages.blocks
    chosen = concatenated_ranges(messages.first_block[members], messages.first_block[members + 1])
    tensor, start = blocks.tensor[chosen], blocks.start[chosen]
    rows, cols, stride = blocks.rows[chosen], blocks.cols[chosen], blocks.row_stride[chosen]
    message_offset = np.concatenate((np.zeros(1, np.int64), np.cumsum(rows * cols)))
    tensor, start, rows, cols, stride = coalesce(tensor, start, rows, cols, stride)
    offset = np.concatenate((np.zeros(1, np.int64), np.cumsum(rows * cols)))
    return Stream(
        peer=int(messages.peer[members[0]]),
        round=int(messages.round[members[0]]),
        tensor=tensor,
        start=start,
        rows=rows,
        cols=cols,
        row_stride=stride,
        offset=offset,
        cut=_cuts(messages, members, message_offset),
        message_block=chosen,
        message_offset=message_offset,
    )


def _cuts(messages: Messages, members: Int64, offset: Int64) -> Int64:
    """The cuts of messages laid end to end, as elements of the stream.

    Args:
        offset: [B + 1] element where each of their blocks begins, and the end of the last.
    """
    first, last = messages.first_cut[members], messages.first_cut[members + 1]
    num_blocks = messages.first_block[members + 1] - messages.first_block[members]
    begin = offset[np.cumsum(num_blocks) - num_blocks]
    cuts: Int64 = messages.cut[concatenated_ranges(first, last)] + np.repeat(begin, last - first)
    return cuts


def coalesce(
    tensor: Int32, start: Int64, rows: Int64, cols: Int64, row_stride: Int64
) -> tuple[Int32, Int64, Int64, Int64, Int64]:
    """Merge blocks that follow each other in memory, as well as in the stream.

    A rectangle without gaps becomes one run; a run that continues the one before is joined
    to it; and rectangles of equal width that continue each other's rows become one.
    """
    whole = (rows > 1) & (cols == row_stride)
    cols = np.where(whole, rows * cols, cols)
    rows = np.where(whole, 1, rows)
    row_stride = np.where(rows == 1, cols, row_stride)

    run = rows == 1
    joins = run[1:] & run[:-1] & (start[1:] == start[:-1] + cols[:-1])
    head = np.flatnonzero(np.concatenate(([True], ~(joins & (tensor[1:] == tensor[:-1])))))
    cols = np.where(run[head], np.add.reduceat(cols, head), cols[head])
    tensor, start, rows, row_stride = tensor[head], start[head], rows[head], row_stride[head]
    row_stride = np.where(rows == 1, cols, row_stride)

    follows = (
        (tensor[1:] == tensor[:-1])
        & (cols[1:] == cols[:-1])
        & (row_stride[1:] == row_stride[:-1])
        & (rows[1:] > 1)
        & (rows[:-1] > 1)
        & (start[1:] == start[:-1] + rows[:-1] * row_stride[:-1])
    )
    head = np.flatnonzero(np.concatenate(([True], ~follows)))
    rows = np.add.reduceat(rows, head)
    return tensor[head], start[head], rows, cols[head], row_stride[head]
