"""Measured links in the cost model."""

import json

import pytest

from realloc.core.errors import InvalidInput
from realloc.cost.hardware import hardware_of
from realloc.cost.links import message_seconds
from realloc.cost.measured_links import LinkTable, MeasuredPair, with_measured_links

H100 = hardware_of("H100").with_node_size(2)


def table(*pairs: MeasuredPair) -> LinkTable:
    return LinkTable(
        pairs=pairs,
        devices_per_node=2,
        message_bytes=1 << 20,
        all_reduce_seconds=1.0,
        backend="nccl",
    )


def pair(*devices: int, seconds: float, bandwidth: float) -> MeasuredPair:
    low, high = devices
    return MeasuredPair(
        devices=(low, high),
        crosses_nodes=low // 2 != high // 2,
        latency_seconds=seconds,
        bytes_per_second=bandwidth,
        all_reduce_seconds=1.0,
    )


INSIDE = (pair(0, 1, seconds=1e-5, bandwidth=2e11), pair(2, 3, seconds=1e-5, bandwidth=2e11))
ACROSS = tuple(
    pair(a, b, seconds=3e-5, bandwidth=bandwidth)
    for a, b, bandwidth in ((0, 2, 4e10), (0, 3, 4e10), (1, 2, 4e10), (1, 3, 1e9))
)


@pytest.mark.parametrize(
    ("crosses", "wanted"), [(False, 1e-5 + 1e9 / 2e11), (True, 3e-5 + 1e9 / 4e10)]
)
def test_a_message_takes_what_was_measured(crosses: bool, wanted: float) -> None:
    """The model gives the doctor's own figure back; one bad pair does not move the median."""
    measured = with_measured_links(H100, table(*INSIDE, *ACROSS))
    seconds = message_seconds(1e9, crosses_nodes=crosses, hardware=measured)
    assert seconds == pytest.approx(wanted)


def test_what_was_not_measured_stays_the_presets() -> None:
    """One node says nothing about the network."""
    measured = with_measured_links(H100, table(*INSIDE))
    assert measured.network == H100.network
    assert measured.node_link.bytes_per_second == 2e11
    assert measured.efficiency == H100.efficiency


def test_a_table_survives_json() -> None:
    """What doctor writes is what plan reads."""
    whole = table(*INSIDE, *ACROSS)
    assert LinkTable.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("data", [[], {}, {"pairs": 3}, {"pairs": [{"devices": [0]}]}])
def test_another_file_is_refused(data: object) -> None:
    """The message says what writes such a file."""
    with pytest.raises(InvalidInput, match="realloc doctor --links"):
        LinkTable.from_json(data)
