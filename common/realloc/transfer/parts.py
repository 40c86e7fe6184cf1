"""Parts of canonical tensors: what a chunk is made of, as digests and their readers see it.

Pieces (`realloc.transfer.streams`) say where memory is, merged as far as memory goes; parts
are the same elements block by block, each of one canonical tensor.
"""

from dataclasses import dataclass

import numpy as np

from realloc.core.transfer import Int64, Messages
from realloc.transfer.streams import Stream, spans_between
from realloc.transfer.summing import Rectangle


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A rectangle of one canonical tensor in a chunk."""

    key: int
    """Which digest it counts in; see `Parts`."""
    tensor: int
    """Local parameter that holds it."""
    rectangle: Rectangle
    """Its place in the parameter and in the canonical tensor."""
    offset: int
    """Element of the chunk where it begins."""


class Parts:
    """The parts of one direction of a program. A key is a canonical tensor, to or from a peer."""

    def __init__(self, messages: Messages, *, by_peer: bool) -> None:
        """Number the keys.

        Args:
            by_peer: whether what moves to each peer has keys of its own.
        """
        blocks = self._blocks = messages.blocks
        peer = np.repeat(messages.peer.astype(np.int64), np.diff(messages.first_block))
        pairs = np.stack((peer * by_peer, blocks.canonical.astype(np.int64)), axis=1)
        keys, key = np.unique(pairs, axis=0, return_inverse=True)
        self.key: Int64 = key.reshape(-1)
        """[blocks] key of each."""
        self.peer: list[int] = keys[:, 0].tolist()
        self.canonical: list[int] = keys[:, 1].tolist()
        """[keys] what each key stands for."""
        self.num_elements: Int64 = np.zeros(len(keys), dtype=np.int64)
        """[keys] elements of all their parts."""
        np.add.at(self.num_elements, self.key, blocks.rows * blocks.cols)
        # Rows that follow each other in memory and in the tensor are one.
        one_run = (blocks.cols == blocks.row_stride) & (blocks.cols == blocks.canonical_stride)
        self._cols: list[int] = np.where(one_run, blocks.rows * blocks.cols, blocks.cols).tolist()

    def __len__(self) -> int:
        return len(self.canonical)

    def between(self, stream: Stream, first: int, last: int) -> tuple[Part, ...]:
        """What elements first … last − 1 of a stream are."""
        of = stream.message_block
        return tuple(
            self._part(of[span.block], cut.row, cut.col, cut.rows, cut.cols, cut.offset)
            for span in spans_between(stream.message_offset, first, last)
            for cut in span.rectangles(self._cols[of[span.block]])
        )

    def whole(self, block: int) -> Part:
        """A block of the messages, by itself."""
        cols = self._cols[block]
        rows = int(self._blocks.rows[block] * self._blocks.cols[block]) // cols
        return self._part(block, 0, 0, rows, cols, 0)

    def _part(self, block: int, row: int, col: int, rows: int, cols: int, offset: int) -> Part:
        blocks = self._blocks
        row_stride = int(blocks.row_stride[block])
        canonical_stride = int(blocks.canonical_stride[block])
        return Part(
            key=int(self.key[block]),
            tensor=int(blocks.tensor[block]),
            rectangle=Rectangle(
                start=int(blocks.start[block]) + row * row_stride + col,
                rows=rows,
                cols=cols,
                row_stride=row_stride,
                canonical_start=int(blocks.canonical_start[block]) + row * canonical_stride + col,
                canonical_stride=canonical_stride,
            ),
            offset=offset,
        )
