"""Two lists of rectangles are cut so that they can be copied pair by pair."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.transfer.matching import Strip, copy_matched, matched

FLAT = torch.arange(10_000)
shape = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))


def strips(shapes: list[tuple[int, int, int]], total: int) -> list[Strip]:
    """Strips of these shapes, and a run of what is left, one behind the other."""
    found, start, size = [], 0, 0
    for rows, cols, gap in shapes:
        if size + rows * cols <= total:
            found.append(Strip(FLAT, start, rows, cols, cols + gap))
            start += rows * (cols + gap) + 1
            size += rows * cols
    if size < total:
        found.append(Strip(FLAT, start, 1, total - size, total - size))
    return found


def elements(of: list[Strip]) -> list[int]:
    return [element for strip in of for element in strip.view().reshape(-1).tolist()]


@given(
    left=st.lists(shape, max_size=6), right=st.lists(shape, max_size=6), total=st.integers(1, 150)
)
@settings(max_examples=300, deadline=None)
def test_pairs_have_one_shape_and_hold_all_elements_in_order(
    left: list[tuple[int, int, int]], right: list[tuple[int, int, int]], total: int
) -> None:
    """Random lists of rectangles of the same number of elements."""
    ours, theirs = strips(left, total), strips(right, total)
    pairs = list(matched(ours, theirs))
    for one, other in pairs:
        assert (one.rows, one.cols) == (other.rows, other.cols)
    assert elements([one for one, _ in pairs]) == elements(ours)
    assert elements([other for _, other in pairs]) == elements(theirs)


def test_what_is_alike_or_one_run_is_copied_at_once() -> None:
    """A run against rows is one copy, and rows of equal length are, whatever their strides."""
    run, rows = Strip(FLAT, 5, 1, 40, 40), Strip(FLAT, 100, 4, 10, 17)
    assert len(list(matched([run], [rows]))) == 1
    assert len(list(matched([rows], [Strip(FLAT, 0, 4, 10, 10)]))) == 1
    target = torch.zeros(40, dtype=FLAT.dtype)
    copy_matched([Strip(target, 0, 1, 40, 40)], [rows])
    assert target.tolist() == elements([rows])
