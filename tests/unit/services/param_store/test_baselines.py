"""When a target is known to have what has not changed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from services.param_store.baselines import Baselines
from services.param_store.model import Model
from services.param_store.orders import ReallocationOrder
from tests.support.toy_store import MODEL, TARGET, order

PLAN: Any = SimpleNamespace(plan=SimpleNamespace(canonical_tensors=("a", "b", "c")))
DIGESTS = {(2, 0): 10, (2, 1): 11, (3, 1): 21, (3, 2): 22}
"""By endpoint and tensor."""


def ordered(version: int, **changes: Any) -> ReallocationOrder:
    """TARGET shall have a version, in processes of a first start."""
    target = replace(TARGET, weight_version=version, incarnations=("1", "1"))
    return order(version, target=target, **changes)


def model_at(version: int) -> Model:
    """What the registry says once TARGET has a version."""
    return MODEL.with_version(ordered(version).target, version)


def known() -> Baselines:
    """TARGET got version 1."""
    baselines = Baselines()
    baselines.remember(ordered(1), DIGESTS)
    return baselines


def test_tensors_whose_digest_differs_anywhere_have_changed() -> None:
    """At one of two destinations is enough; where nothing differs nothing moves."""
    now = {**DIGESTS, (3, 1): 0}
    assert known().changed(ordered(2), model_at(1), PLAN, now) == frozenset({"b"})
    assert known().changed(ordered(2), model_at(1), PLAN, DIGESTS) == frozenset()


def test_where_everything_changed_the_plan_of_everything_will_do() -> None:
    """No second plan is made then."""
    assert known().changed(ordered(2), model_at(1), PLAN, {}) is None


@pytest.mark.parametrize(
    ("wanted", "model"),
    [
        (ordered(2, dtype="bfloat16"), model_at(1)),
        (
            replace(ordered(2), target=replace(ordered(2).target, incarnations=("1", "2"))),
            model_at(1),
        ),
        (ordered(3), model_at(2)),
        (ordered(2), MODEL),
        (ordered(2, model_id="critic"), model_at(1)),
    ],
    ids=["another type", "a restart", "another's work", "nothing there", "another model"],
)
def test_everything_moves_where_the_target_may_hold_something_else(
    wanted: ReallocationOrder, model: Model
) -> None:
    """A part of it would leave weights of two versions."""
    assert known().changed(wanted, model, PLAN, DIGESTS) is None


def test_what_moved_without_digests_or_of_a_released_job_is_not_known() -> None:
    """Then everything moves once."""
    unseen, released = known(), known()
    unseen.remember(ordered(1), None)
    released.release("job")
    for baselines in (unseen, released):
        assert baselines.changed(ordered(2), model_at(1), PLAN, DIGESTS) is None
