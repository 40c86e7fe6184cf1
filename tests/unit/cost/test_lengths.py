"""Response lengths against sums over every token."""

import math

import pytest

from realloc.core.errors import InvalidInput
from realloc.cost.lengths import ResponseLengths


@pytest.mark.parametrize(("mean", "limit"), [(1.5, 64), (100, 1024), (600, 1024), (1020, 1024)])
def test_the_mean_is_kept(mean: float, limit: int) -> None:
    """Survival summed over tokens is the mean length."""
    lengths = ResponseLengths(mean=mean, limit=limit)
    assert sum(lengths.survival(k) for k in range(limit)) == pytest.approx(mean, rel=1e-6)


def test_all_rows_reach_the_limit() -> None:
    """A mean at the limit is no distribution at all."""
    lengths = ResponseLengths(mean=128, limit=128)
    assert lengths.hazard == 0.0
    assert sum(s.steps for s in lengths.segments(7)) == pytest.approx(128)
    assert {s.rows for s in lengths.segments(7)} == {7}


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_steps_are_those_of_the_longest_row(rows: int) -> None:
    """Steps add up to the expected longest row, rows times steps to all tokens."""
    lengths = ResponseLengths(mean=200, limit=1024)
    segments = lengths.segments(rows, parts=512)
    longest = sum(1 - (1 - math.exp(-lengths.hazard * k)) ** rows for k in range(1024))
    assert sum(s.steps for s in segments) == pytest.approx(longest, rel=0.02)
    tokens = sum(s.steps * s.rows for s in segments)
    assert tokens == pytest.approx(rows * 200, rel=0.05)


def test_the_tail_costs() -> None:
    """More rows wait for a longer one, with the same mean."""
    lengths = ResponseLengths(mean=200, limit=1024)
    steps = [sum(s.steps for s in lengths.segments(rows)) for rows in (1, 8, 64)]
    assert steps[0] < steps[1] < steps[2] <= 1024


def test_a_mean_beyond_the_limit_is_refused() -> None:
    """The message has both numbers."""
    with pytest.raises(InvalidInput, match=r"300 and must .* 256"):
        ResponseLengths(mean=300, limit=256)
