"""Messages as streams of chunks: what is packed, sent and unpacked at once.

All messages of a pair of endpoints in one round are one *stream*: their blocks packed back to
back. A stream is cut into chunks (`realloc.transfer.cuts`), alike on both sides although their
blocks differ: a slice that is one run here may be many rows there.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.transfer import Int32, Int64, Messages
from realloc.transfer.coalescing import Places, coalesce


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
    tensor: list[int]
    start: list[int]
    cols: list[int]
    row_stride: list[int]
    offset: list[int]
    """[B + 1] element of the stream where each block begins, and the stream's length."""
    cut: Int64
    """[C] elements where a long run of memory begins or ends on either side; see `Messages`."""
    message_block: list[int]
    """[M] the blocks of the program's messages, before adjacent ones were merged."""
    message_offset: list[int]
    """[M + 1] element of the stream where each of these begins."""

    @property
    def num_elements(self) -> int:
        return self.offset[-1]

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The blocks, and parts of blocks, that elements first … last − 1 consist of."""
        for span in spans_between(self.offset, first, last):
            block = span.block
            start, row_stride = self.start[block], self.row_stride[block]
            for cut in span.rectangles(self.cols[block]):
                yield Piece(
                    tensor=self.tensor[block],
                    start=start + cut.row * row_stride + cut.col,
                    rows=cut.rows,
                    cols=cut.cols,
                    row_stride=row_stride,
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


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive elements of a block of a stream."""

    block: int
    first: int
    last: int
    """Elements first … last − 1 of the block."""
    offset: int
    """Element of the cut-out range where the block begins, or would: it may be negative."""

    def rectangles(self, cols: int) -> Iterator[Cut]:
        """The elements as at most three rectangles, in a block whose rows are so long."""
        first = self.first
        while first < self.last:
            row, col = divmod(first, cols)
            whole_rows = (self.last - first) // cols if col == 0 else 0
            width = cols if whole_rows else min(cols - col, self.last - first)
            rows = max(whole_rows, 1)
            yield Cut(row, col, rows, width, first + self.offset)
            first += rows * width


def spans_between(offset: Sequence[int], first: int, last: int) -> Iterator[Span]:
    """What elements first … last − 1 are of blocks laid end to end.

    Args:
        offset: [B + 1] element where each block begins, and the end of the last.
    """
    for block in range(bisect_right(offset, first) - 1, bisect_left(offset, last)):
        at = offset[block]
        yield Span(block, max(first, at) - at, min(last, offset[block + 1]) - at, at - first)


def streams_of(messages: Messages) -> list[Stream]:
    """The streams of one endpoint's sends or receives, in order of round and peer."""
    if len(messages) == 0:
        return []
    order = np.lexsort((messages.peer, messages.round))
    peer, rounds = messages.peer[order], messages.round[order]
    begins = np.concatenate(([True], (np.diff(rounds) != 0) | (np.diff(peer) != 0)))
    head, of_message = np.flatnonzero(begins), np.cumsum(begins) - 1
    num_blocks = np.diff(messages.first_block)[order]
    block, of_block = _ranges(messages.first_block, order), np.repeat(of_message, num_blocks)
    places = coalesce(Places.of(messages.blocks, block, of_block))
    size = (messages.blocks.rows * messages.blocks.cols)[block]

    first = np.append(0, np.cumsum(size))[np.cumsum(num_blocks) - num_blocks]
    num_cuts = np.diff(messages.first_cut)[order]
    cut = messages.cut[_ranges(messages.first_cut, order)]
    cut = cut + np.repeat(first - first[head][of_message], num_cuts)  # of the stream now
    of_cut = np.repeat(of_message, num_cuts)

    def by_stream(values: Int32 | Int64, of: Int64) -> list[Int64]:
        return np.split(values, np.searchsorted(of, np.arange(1, len(head))))

    streams = [
        Stream(
            peer=int(peer[at]),
            round=int(rounds[at]),
            tensor=tensor.tolist(),
            start=start.tolist(),
            cols=cols.tolist(),
            row_stride=row_stride.tolist(),
            offset=_offsets(rows * cols),
            cut=cuts,
            message_block=blocks.tolist(),
            message_offset=_offsets(sizes),
        )
        for at, tensor, start, rows, cols, row_stride, cuts, blocks, sizes in zip(
            head.tolist(),
            by_stream(places.tensor, places.group),
            by_stream(places.start, places.group),
            by_stream(places.rows, places.group),
            by_stream(places.cols, places.group),
            by_stream(places.row_stride, places.group),
            by_stream(cut, of_cut),
            by_stream(block, of_block),
            by_stream(size, of_block),
            strict=True,
        )
    ]
    return [stream for stream in streams if stream.num_elements]


def _offsets(sizes: Int64) -> list[int]:
    """Where each of some blocks begins when they are laid end to end, and the end of the last."""
    offsets: list[int] = np.append(0, np.cumsum(sizes)).tolist()
    return offsets


def _ranges(borders: Int64, order: Int64) -> Int64:
    """The indices borders[m] … borders[m + 1] − 1 of every m of an order, one after the other."""
    first, counts = borders[order], np.diff(borders)[order]
    shift = np.repeat(first - (np.cumsum(counts) - counts), counts)
    indices: Int64 = np.arange(int(counts.sum()), dtype=np.int64) + shift
    return indices
