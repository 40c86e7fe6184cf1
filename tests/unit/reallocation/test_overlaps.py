"""Blocks that share elements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.transfer import Blocks
from realloc.reallocation.layouts.provider import LocalParameter, RankLayout
from realloc.reallocation.overlaps import overlapping_parameters

SIZE = 24
Rectangle = tuple[int, int, int, int, int]
"""Parameter, start, rows, columns, stride."""


def table(rectangles: list[Rectangle]) -> RankLayout:
    """Two parameters, p0 and p1, with these blocks."""
    columns = np.array(rectangles, dtype=np.int64).reshape(-1, 5).T
    zeros = np.zeros(len(rectangles), np.int64)
    return RankLayout(
        parameters=tuple(LocalParameter(name=f"p{n}", shape=(SIZE,)) for n in range(2)),
        blocks=Blocks(
            tensor=columns[0].astype(np.int32),
            start=columns[1],
            rows=columns[2],
            cols=columns[3],
            row_stride=columns[4],
            canonical=zeros.astype(np.int32),
            canonical_start=zeros,
            canonical_stride=zeros,
        ),
    )


@pytest.mark.parametrize(
    ("rectangles", "found"),
    [
        ([], ()),
        ([(0, 0, 1, 12, 12), (0, 12, 1, 12, 12)], ()),
        ([(0, 0, 1, 13, 13), (0, 12, 1, 12, 12)], ("p0",)),
        ([(0, 0, 4, 3, 6), (0, 3, 4, 3, 6)], ()),  # columns beside each other
        ([(0, 0, 4, 4, 6), (0, 3, 4, 3, 6), (1, 0, 1, 24, 24)], ("p0",)),
        ([(0, 0, 1, 24, 24), (1, 0, 1, 24, 24), (1, 5, 1, 1, 1)], ("p1",)),
    ],
)
def test_parameters_with_shared_elements_are_named(
    rectangles: list[Rectangle], found: tuple[str, ...]
) -> None:
    """Neighbours and interleaved columns share nothing."""
    assert overlapping_parameters(table(rectangles)) == found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 9), st.integers(1, 3), st.integers(1, 4),
            st.integers(4, 5),
        ),
        max_size=4,
    )
)  # fmt: skip
def test_the_answer_is_that_of_counting_every_element(rectangles: list[Rectangle]) -> None:
    """Against a count of who holds which element."""
    counts = np.zeros((2, SIZE), np.int64)
    for parameter, start, rows, cols, stride in rectangles:
        for row in range(rows):
            counts[parameter, start + row * stride : start + row * stride + cols] += 1
    expected = tuple(f"p{n}" for n in range(2) if counts[n].max() > 1)
    assert overlapping_parameters(table(rectangles)) == expected
