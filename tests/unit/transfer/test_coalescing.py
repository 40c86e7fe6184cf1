"""Blocks are merged where memory goes on, and never change the elements that they hold."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.transfer.coalescing import Places, coalesce

Block = tuple[int, int, int, int, int]
"""Parameter, start, rows, cols, row stride."""


def places(blocks: list[Block], group: list[int] | None = None) -> Places:
    tensor, start, rows, cols, row_stride = np.array(blocks, dtype=np.int64).T
    return Places(
        group=np.array(group or [0] * len(blocks), dtype=np.int64),
        tensor=tensor.astype(np.int32),
        start=start,
        rows=rows,
        cols=cols,
        row_stride=row_stride,
    )


def described(of: Places) -> list[tuple[int, ...]]:
    return [
        tuple(row) for row in np.stack((of.tensor, of.start, of.rows, of.cols), axis=1).tolist()
    ]


def elements(of: Places) -> list[tuple[int, int, int]]:
    """Group, parameter and place of every element, in order."""
    columns = (of.group, of.tensor, of.start, of.rows, of.cols, of.row_stride)
    return [
        (group, tensor, start + row * stride + col)
        for group, tensor, start, rows, cols, stride in zip(*map(list, columns), strict=True)
        for row in range(rows)
        for col in range(cols)
    ]


block = st.tuples(
    st.integers(0, 1),
    st.sampled_from((0, 3, 4, 6, 8, 9, 12, 16, 24)),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(4, 6),
)


@given(blocks=st.lists(block, min_size=1, max_size=12), borders=st.sets(st.integers(0, 12)))
@settings(max_examples=500, deadline=None)
def test_the_elements_stay_the_same_and_groups_apart(
    blocks: list[Block], borders: set[int]
) -> None:
    """Random blocks, many of which touch or are evenly spaced."""
    given_places = places(blocks, [sum(b <= at for b in borders) for at in range(len(blocks))])
    merged = coalesce(given_places)
    assert elements(merged) == elements(given_places)
    assert len(merged.start) <= len(blocks)


def test_what_follows_in_memory_is_merged() -> None:
    """Rows without gaps, runs in a row or evenly spaced, and stacked rectangles."""
    cases = {
        "rows without a gap": ([(0, 0, 4, 8, 8)], [(0, 0, 1, 32)]),
        "runs in a row": ([(0, 0, 1, 8, 8), (0, 8, 2, 4, 4)], [(0, 0, 1, 16)]),
        "stacked rectangles": ([(0, 0, 3, 4, 8), (0, 24, 2, 4, 8)], [(0, 0, 5, 4)]),
        "two tensors": ([(0, 0, 1, 8, 8), (1, 8, 1, 8, 8)], [(0, 0, 1, 8), (1, 8, 1, 8)]),
        "runs at one distance": (
            [(0, 0, 1, 8, 8), (0, 9, 1, 8, 8), (0, 18, 1, 8, 8), (0, 28, 1, 8, 8)],
            [(0, 0, 3, 8), (0, 28, 1, 8)],
        ),
        "another distance": (
            [(0, 0, 1, 8, 8), (0, 10, 1, 8, 8), (0, 30, 1, 8, 8), (0, 50, 1, 8, 8)],
            [(0, 0, 2, 8), (0, 30, 2, 8)],
        ),
        "backwards": ([(0, 9, 1, 8, 8), (0, 0, 1, 8, 8)], [(0, 9, 1, 8), (0, 0, 1, 8)]),
        "other lengths": ([(0, 0, 1, 8, 8), (0, 9, 1, 7, 7)], [(0, 0, 1, 8), (0, 9, 1, 7)]),
    }
    for name, (blocks, merged) in cases.items():
        assert described(coalesce(places(blocks))) == merged, name
