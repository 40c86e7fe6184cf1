"""Which graphs have windows, and that benchmark problems are solved to proven optimality."""

import numpy as np
import pytest

from realloc.cost.simulator import SimulationRules
from realloc.search.heuristic import HeuristicSearcher
from realloc.search.result import search_to_end
from realloc.search.searchers import searcher_named
from realloc.search.windows import topological_order, window_edges
from tools.bench.search_problems import WORKLOADS, build_problem

PPO = [(0, 1), (0, 2), (0, 3), *((a, b) for a in (1, 2, 3) for b in (4, 5))]
PPO_TRAIN = np.array([4, -1, -1, 5, 4, 5])


def test_ppo_has_windows_that_begin_with_training() -> None:
    """Training comes first, then generation and the critic's inference behind their models."""
    found = window_edges(6, PPO, PPO_TRAIN, SimulationRules())
    assert found is not None
    assert set(found) == {(0, 1), (0, 2), (0, 3), (4, 0), (5, 3)}
    assert topological_order(6, found)[0] == 4


@pytest.mark.parametrize(
    ("edges", "train", "staleness"),
    [
        (PPO, PPO_TRAIN, 1),
        # A frozen call that waits for nothing runs ahead of training.
        ([(0, 1)], np.array([-1, 1]), 0),
        # One train call does not wait for the reference scores.
        ([e for e in PPO if e != (2, 5)], PPO_TRAIN, 0),
        # A model that only trains.
        ([(0, 1), (0, 2)], np.array([1, 1, 2]), 0),
        # A call behind training.
        ([*PPO, (4, 5)], PPO_TRAIN, 0),
    ],
)
def test_graphs_whose_iterations_overlap_otherwise_have_none(
    edges: list[tuple[int, int]], train: np.ndarray, staleness: int
) -> None:
    """Each condition of the proof is checked."""
    assert window_edges(len(train), edges, train, SimulationRules(staleness=staleness)) is None


@pytest.mark.parametrize("name", ["ppo-8", "ppo-128-large-critic"])
def test_benchmark_problems_are_proven_and_better_than_the_heuristic(name: str) -> None:
    """10^11 and 10^20 plans: the gap closes, and symmetric placement is beaten."""
    problem = build_problem(WORKLOADS[name])
    found = search_to_end(searcher_named("default"), problem, seconds=300.0)
    assert found.gap == 0.0
    assert found.seconds < search_to_end(HeuristicSearcher(), problem, seconds=1.0).seconds
    assert found.seconds == problem.simulate(found.options).seconds


def test_nine_calls_find_disjoint_meshes() -> None:
    """Safe RLHF: critics train beside the actor, not after it."""
    problem = build_problem(WORKLOADS["safe-rlhf-8"])
    found = search_to_end(searcher_named("default"), problem, seconds=20.0)
    calls = {call.name: call for call in problem.place(found.options)}
    assert not calls["actor_train"].devices.overlaps(calls["critic_train"].devices)
    assert found.gap <= 0.05
