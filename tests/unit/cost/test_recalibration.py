"""Corrections from measured calls: medians, bounded, forgetting."""

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.model import Head
from realloc.core.strategy import ParallelStrategy
from realloc.cost.recalibration import (
    BOUND,
    LEAST_RATIOS,
    MOST_CALLS,
    MOST_RATIOS,
    Corrections,
    MeasuredCall,
    measured_call,
)
from tests.unit.cost.models import LLAMA_8B

CALL = measured_call("train", LLAMA_8B, ParallelStrategy(tensor=2))


def learned(ratios, call: MeasuredCall = CALL, start: Corrections | None = None) -> Corrections:
    corrections = start or Corrections()
    for ratio in ratios:
        corrections = corrections.observed(call, predicted=2.0, measured=2.0 * ratio)
    return corrections


def test_nothing_is_corrected_before_enough_was_seen() -> None:
    """The first iterations warm up: too few ratios do not count."""
    assert learned([3.0] * (LEAST_RATIOS - 1)).factor(CALL) == 1.0
    assert learned([3.0] * LEAST_RATIOS).factor(CALL) == pytest.approx(3.0)


def test_one_odd_iteration_changes_nothing() -> None:
    """The median of seven like ratios and one that is a hundred times as large."""
    assert learned([1.2, 1.2, 120.0, 1.2, 1.2, 1.2, 1.2, 1.2]).factor(CALL) == pytest.approx(1.2)


def test_what_is_old_is_forgotten() -> None:
    """After as many new ratios as are kept, the old ones have no say."""
    corrections = learned([5.0] * 100 + [0.5] * MOST_RATIOS)
    assert len(corrections.ratios[CALL]) == MOST_RATIOS
    assert corrections.factor(CALL) == pytest.approx(0.5)


def test_corrections_are_bounded() -> None:
    """A call that hangs for an hour does not make all later plans absurd."""
    assert learned([1e6] * 9).factor(CALL) == BOUND
    assert learned([1e-6] * 9).factor(CALL) == 1 / BOUND


def test_other_strategies_take_the_models_median() -> None:
    """A strategy that never ran is corrected like those of its model that did; others are not."""
    corrections = learned([1.4] * 5)
    other = measured_call("train", LLAMA_8B, ParallelStrategy(data=2))
    critic = measured_call("train", LLAMA_8B.with_head(Head.VALUE), ParallelStrategy(tensor=2))
    assert corrections.factor(other) == pytest.approx(1.4)
    assert corrections.factor(critic) == 1.0
    assert corrections.factor(measured_call("inference", LLAMA_8B, ParallelStrategy())) == 1.0


def test_the_least_recent_call_is_forgotten_first() -> None:
    """No more calls are kept than the bound."""
    corrections = learned([2.0] * 3)
    for number in range(MOST_CALLS):
        call = MeasuredCall(kind="train", model=f"m{number}", strategy="d1t1p1")
        corrections = learned([1.0], call, corrections)
    assert len(corrections.ratios) == MOST_CALLS
    assert CALL not in corrections.ratios


@pytest.mark.parametrize("seconds", [(0.0, 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_nothing_is_learned_from_nothing(seconds) -> None:
    """No time predicted, none measured, or no number: no ratio."""
    predicted, measured = seconds
    assert not Corrections().observed(CALL, predicted=predicted, measured=measured).ratios


def test_the_text_gives_them_back() -> None:
    """Written and read, corrections are equal to four digits."""
    corrections = learned([1.25, 0.75, 1.5])
    assert Corrections.from_json(corrections.to_json()) == corrections


@pytest.mark.parametrize("text", ["{", "[1]", '[["a", "b", "c", [-1]]]', '[["a", "b", "c", 1]]'])
def test_unreadable_text_is_refused(text: str) -> None:
    """Broken JSON, another form, ratios that cannot be."""
    with pytest.raises(InvalidInput):
        Corrections.from_json(text)
