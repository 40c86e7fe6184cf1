"""Ranks that measure the links between them, over gloo."""

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch

from realloc.core.errors import Unavailable
from realloc.transfer import link_meter
from realloc.transfer.link_meter import LinkMeasurement, MeterWorld, measure_links, rounds_of_pairs
from realloc.transfer.rendezvous import TransferStore
from tests.support.rank_processes import RankProcesses

NUM_RANKS = 3
SECONDS = 40.0


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    processes = RankProcesses(NUM_RANKS)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def store() -> Iterator[TransferStore]:
    store = TransferStore("127.0.0.1")
    yield store
    store.close()


def world(store: TransferStore, name: str, rank: int, **changes: float) -> MeterWorld:
    facts = {"num_ranks": NUM_RANKS, "message_bytes": 1 << 20, "timeout_seconds": SECONDS}
    return MeterWorld(
        measurement_id=name,
        store_host=store.host,
        store_port=store.port,
        rank=rank,
        **{**facts, **changes},  # type: ignore[arg-type]
    )


def measure(world: MeterWorld) -> LinkMeasurement:
    return measure_links(world, host="127.0.0.1", device=torch.device("cpu"))


def measure_with_a_bad_cable(world: MeterWorld, period: int) -> LinkMeasurement:
    """What this rank sends is not what its peers expect of it."""
    usual, link_meter._PERIOD = link_meter._PERIOD, period
    try:
        return measure(world)
    finally:
        link_meter._PERIOD = usual


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8, 13, 128])
def test_every_pair_meets_once(num_ranks: int) -> None:
    """The tournament has every pair exactly once, and nobody twice in a round."""
    met: list[tuple[int, int]] = []
    for pairs in rounds_of_pairs(num_ranks):
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
        met += pairs
    assert sorted(met) == list(combinations(range(num_ranks), 2))


def test_every_rank_measures_every_other(ranks: RankProcesses, store: TransferStore) -> None:
    """Positive figures for all pairs; and a second measurement works after the first."""
    for name in ("first", "second"):
        found = ranks.run(
            measure, [(world(store, name, rank),) for rank in range(NUM_RANKS)],
            timeout_seconds=3 * SECONDS,
        )  # fmt: skip
        for rank, measurement in enumerate(found):
            assert {each.peer for each in measurement.links} == {0, 1, 2} - {rank}
            assert measurement.backend == "gloo"
            assert measurement.all_reduce_seconds > 0
            for link in measurement.links:
                assert 0 < link.latency_seconds < link.all_reduce_seconds + 1
                assert link.bytes_per_second > 1e6


def test_two_ranks_are_a_world_too(ranks: RankProcesses, store: TransferStore) -> None:
    """The pair is everybody, and still meets as a pair."""
    worlds = [(world(store, "two", rank, num_ranks=2),) for rank in (0, 1)]
    found = ranks.run(measure, worlds, timeout_seconds=3 * SECONDS)
    assert [[each.peer for each in measurement.links] for measurement in found] == [[1], [0]]


def test_data_that_changes_on_the_way_is_an_error(
    ranks: RankProcesses, store: TransferStore
) -> None:
    """Bandwidth of a link that corrupts what it carries is worth nothing."""
    worlds = [world(store, "bad", rank, num_ranks=2) for rank in (0, 1)]
    ranks.start(measure_with_a_bad_cable, [(worlds[0], 1021), (worlds[1], 1019)])
    for rank in (0, 1):
        with pytest.raises(Unavailable, match="is not what was sent"):
            ranks.results([rank], timeout_seconds=3 * SECONDS)


def test_a_rank_that_never_comes_is_an_error_in_time(
    ranks: RankProcesses, store: TransferStore
) -> None:
    """The others fail by their deadline, and can measure again."""
    ranks.start(measure, [(world(store, "lonely", rank, timeout_seconds=1.0),) for rank in (0, 1)])
    for rank in (0, 1):
        with pytest.raises((Unavailable, RuntimeError), match="rank"):
            ranks.results([rank], timeout_seconds=3 * SECONDS)
    again = [(world(store, "again", rank),) for rank in range(NUM_RANKS)]
    assert len(ranks.run(measure, again, timeout_seconds=3 * SECONDS)) == NUM_RANKS
