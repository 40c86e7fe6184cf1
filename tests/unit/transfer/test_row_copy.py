"""Rows copied into and past the cache against numpy, whatever borders of lines they cross."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.transfer.row_copy import copy_rows


@settings(max_examples=200, deadline=None)
@given(
    itemsize=st.sampled_from((2, 4)),
    rows=st.integers(1, 6),
    cols=st.integers(1, 700),
    gaps=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    starts=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    past_cache=st.booleans(),
)
def test_just_the_rows_are_written(
    itemsize: int,
    rows: int,
    cols: int,
    gaps: tuple[int, int],
    starts: tuple[int, int],
    past_cache: bool,
) -> None:
    dtype = np.dtype(f"u{itemsize}")
    strides = cols + gaps[0], cols + gaps[1]
    target = np.full(starts[0] + rows * strides[0], 7, dtype)
    source = np.arange(starts[1] + rows * strides[1]).astype(dtype)
    expected = target.copy()
    for row in range(rows):
        to, of = starts[0] + row * strides[0], starts[1] + row * strides[1]
        expected[to : to + cols] = source[of : of + cols]
    copy_rows(target, starts[0], strides[0], source, starts[1], strides[1], rows, cols, past_cache)
    assert (target == expected).all()
