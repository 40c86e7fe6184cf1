"""Interpolated ratios: exact at the samples, between them in logarithms, held beyond."""

import pytest

from realloc.cost.ratios import Ratio, RatioTable, Work

LAYER = Work.LAYER_FORWARD
TABLE = RatioTable(
    Ratio(work=LAYER, shape="a", rows=rows, length=length, ratio=rows**0.3 * length**-0.2)
    for rows in (1, 8, 64)
    for length in (16, 256)
)


def test_measured_sizes_are_met() -> None:
    """At a sample the ratio is the sample's."""
    assert TABLE.ratio(LAYER, "a", 8, 256) == pytest.approx(8**0.3 * 256**-0.2)


def test_powers_are_interpolated_exactly() -> None:
    """Between samples a power law of rows and length is met: the logarithms are bilinear."""
    assert TABLE.ratio(LAYER, "a", 20, 50) == pytest.approx(20**0.3 * 50**-0.2)


def test_ratios_are_held_beyond_the_samples() -> None:
    """A million rows have the ratio of the most that were measured: estimates extrapolate."""
    assert TABLE.ratio(LAYER, "a", 1e6, 1e6) == pytest.approx(64**0.3 * 256**-0.2)
    assert TABLE.ratio(LAYER, "a", 1e-3, 1) == pytest.approx(16**-0.2)


def test_other_shapes_and_works_have_no_ratio() -> None:
    """What was not measured is estimated as it stands."""
    assert TABLE.ratio(LAYER, "b", 8, 16) == 1.0
    assert TABLE.ratio(Work.DECODE, "a", 8, 16) == 1.0


def test_holes_take_the_nearest_sample() -> None:
    """A grid with a missing corner has there the ratio of the nearest size."""
    sizes = {(1, 16): 2.0, (1, 256): 3.0, (64, 16): 5.0}
    table = RatioTable(
        Ratio(work=LAYER, shape=0, rows=rows, length=length, ratio=ratio)
        for (rows, length), ratio in sizes.items()
    )
    # From 64 × 256 it is log 16 to 64 × 16 and log 64 to 1 × 256.
    assert table.ratio(LAYER, 0, 64, 256) == pytest.approx(5.0)
