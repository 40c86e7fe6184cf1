"""Messages become streams of chunks that hold the same elements on both sides."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.transfer import Blocks, Messages
from realloc.transfer.cuts import chunk_ends
from realloc.transfer.streams import Piece, streams_of

block = st.tuples(
    st.integers(0, 2), st.integers(0, 9), st.integers(1, 4), st.integers(1, 5), st.integers(5, 7)
)


def elements_of(tensor: int, start: int, rows: int, cols: int, stride: int) -> list[int]:
    """Every element of a block as one number, in packing order."""
    return [1000 * tensor + start + r * stride + c for r in range(rows) for c in range(cols)]


def piece_elements(piece: Piece) -> list[int]:
    return elements_of(piece.tensor, piece.start, piece.rows, piece.cols, piece.row_stride)


def messages_of(
    specs: list[tuple[int, int, list[tuple[int, ...]]]], cuts: list[list[int]]
) -> Messages:
    columns = np.array([b for _, _, blocks in specs for b in blocks], dtype=np.int64).T
    return Messages(
        peer=np.array([peer for peer, _, _ in specs], dtype=np.int32),
        round=np.array([round_ for _, round_, _ in specs], dtype=np.int32),
        first_block=np.cumsum([0, *(len(blocks) for _, _, blocks in specs)]),
        first_cut=np.cumsum([0, *map(len, cuts)]),
        cut=np.array([cut for of in cuts for cut in of], dtype=np.int64),
        blocks=Blocks(
            tensor=columns[0].astype(np.int32),
            start=columns[1],
            rows=columns[2],
            cols=columns[3],
            row_stride=columns[4],
            canonical=np.zeros(columns.shape[1], np.int32),
            canonical_start=np.zeros(columns.shape[1], np.int64),
            canonical_stride=np.ones(columns.shape[1], np.int64),
        ),
    )


@given(
    specs=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.lists(block, min_size=1, max_size=5)),
        min_size=1,
        max_size=5,
    ),
    chunk=st.integers(1, 40),
    cut_at=st.lists(st.integers(0, 30), max_size=3, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_chunks_hold_the_elements_of_all_messages_in_order(
    specs: list[tuple[int, int, list[tuple[int, ...]]]], chunk: int, cut_at: list[int]
) -> None:
    """Streams are ordered by round and peer; a stream's chunks are its messages' elements, and
    end wherever one of the messages is cut."""
    specs.sort(key=lambda spec: spec[1])
    sizes = [sum(rows * cols for _, _, rows, cols, _ in blocks) for _, _, blocks in specs]
    cuts = [sorted(cut for cut in cut_at if cut <= size) for size in sizes]
    streams = streams_of(messages_of(specs, cuts))
    keys = sorted({(round_, peer) for peer, round_, _ in specs})
    assert [(stream.round, stream.peer) for stream in streams] == keys
    for stream in streams:
        expected = [
            element
            for peer, round_, blocks in specs
            if (round_, peer) == (stream.round, stream.peer)
            for spec in blocks
            for element in elements_of(*spec)
        ]
        assert stream.num_elements == len(expected)
        found: list[int] = []
        at, wanted = 0, set()
        for (peer, round_, _), size, of in zip(specs, sizes, cuts, strict=True):
            if (round_, peer) == (stream.round, stream.peer):
                wanted |= {at + cut for cut in of}
                at += size
        assert set(stream.cut.tolist()) == wanted
        ends = chunk_ends(len(expected), stream.cut, chunk).tolist()
        assert wanted <= {0, *ends}
        for first, last in itertools.pairwise([0, *ends]):
            assert 0 < last - first <= chunk
            pieces = list(stream.pieces(first, last))
            offset = 0
            for piece in pieces:
                assert piece.offset == offset
                offset += piece.num_elements
                found += piece_elements(piece)
            assert offset == last - first
        assert found == expected
