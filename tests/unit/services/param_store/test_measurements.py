"""What is measured of reallocations."""

from dataclasses import replace
from typing import Any

import pytest

from realloc.telemetry.names import Attribute, Metric
from services.param_store import measurements
from services.param_store.orders import NO_TRAFFIC, nothing_moved
from services.param_store.phases import Phase, PhaseClock

TRAFFIC = replace(
    NO_TRAFFIC,
    total_bytes=100,
    local_bytes=40,
    cross_device_bytes=60,
    cross_device_bound=50,
    cross_node_bytes=20,
    cross_node_bound=20,
)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Metric, float, dict[Any, Any]]]:
    """Every value that is recorded, with its attributes."""
    seen: list[tuple[Metric, float, dict[Any, Any]]] = []
    monkeypatch.setattr(
        measurements, "record", lambda metric, value, of=None: seen.append((metric, value, of))
    )
    return seen


def test_bytes_are_split_by_kind_and_set_beside_the_bound(
    recorded: list[tuple[Metric, float, dict[Any, Any]]],
) -> None:
    """The kinds add up to all bytes; bandwidth is bytes over the seconds of the transfer."""
    done = replace(nothing_moved(7), bytes=100, seconds=5.0, transfer_seconds=2.0, traffic=TRAFFIC)
    measurements.record_committed("actor", done)
    values = {(metric, of.get(Attribute.BYTES_KIND)): value for metric, value, of in recorded}
    assert values == {
        (Metric.REALLOCATION_SECONDS, None): 5.0,
        (Metric.WEIGHT_VERSION, None): 7,
        (Metric.REALLOCATED_BYTES, "local"): 40,
        (Metric.REALLOCATED_BYTES, "cross_device"): 40,
        (Metric.REALLOCATED_BYTES, "cross_node"): 20,
        (Metric.REALLOCATION_BOUND_RATIO, None): 1.2,
        (Metric.REALLOCATION_BANDWIDTH, None): 50.0,
    }
    assert all(of[Attribute.MODEL_ID] == "actor" for _, _, of in recorded)


def test_each_phase_that_was_left_has_its_seconds_and_the_end_is_counted(
    recorded: list[tuple[Metric, float, dict[Any, Any]]],
) -> None:
    """An aborted one shows where it was, and as aborted."""
    clock = PhaseClock(10.0)
    clock.enter(Phase.TRANSFERRING, 11.0)
    clock.enter(Phase.ABORTED, 14.0)
    measurements.record_phases("actor", clock)
    phases = {
        of[Attribute.PHASE]: value
        for metric, value, of in recorded
        if metric is Metric.REALLOCATION_PHASE_SECONDS
    }
    assert phases == {"preparing": 1.0, "transferring": 3.0}
    ended = [of[Attribute.OUTCOME] for metric, _, of in recorded if metric is Metric.REALLOCATIONS]
    assert ended == ["aborted"]


def test_the_bound_ratio_of_a_plan_that_need_not_cross_is_one_at_best() -> None:
    """Without a bound, any byte that crosses is too many."""
    assert measurements.bound_ratio(NO_TRAFFIC) == 1.0
    assert measurements.bound_ratio(replace(NO_TRAFFIC, cross_device_bytes=1)) == 2.0
