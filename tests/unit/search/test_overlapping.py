"""What staleness lets run ahead, and the bound that knows it."""

import numpy as np

from realloc.cost.simulator import SimulationRules
from realloc.search.bound_tables import build_bounds
from realloc.search.bounds import choice_bound
from realloc.search.branch_and_bound import BranchAndBound
from realloc.search.candidates import distinct_options
from realloc.search.overlapping import delays
from realloc.search.problem import SearchProblem
from realloc.search.space import build_tables
from realloc.search.windows import train_together
from tests.unit.search.test_windows import PPO, PPO_TRAIN
from tools.bench.search_problems import WORKLOADS, build_problem


def test_only_calls_that_do_not_wait_for_each_other_hold_up_training_together() -> None:
    """PPO: the rollout of iteration 2, or all its inferences."""
    assert delays(6, PPO, PPO_TRAIN, SimulationRules(staleness=1)) == [0b000001, 0b001110]
    assert delays(6, PPO, PPO_TRAIN, SimulationRules()) == [0]


def test_train_calls_become_ready_together_only_where_nothing_runs_ahead() -> None:
    """Each waits for all other calls, and calls that wait for nothing are of trained models."""
    assert train_together(6, PPO, PPO_TRAIN)
    assert not train_together(6, [e for e in PPO if e != (2, 5)], PPO_TRAIN)
    assert not train_together(2, [(0, 1)], np.array([-1, 1]))


def test_with_staleness_the_bound_counts_rollouts_beside_the_last_train_call() -> None:
    """After 50,000 choices the gap of ppo-8 is below 17 %; without it, it was 30 %."""
    problem, rules = build_problem(WORKLOADS["ppo-8"]), SimulationRules(staleness=1)
    tables = build_tables(problem, rules)
    search = BranchAndBound(
        tables, *build_bounds(problem, distinct_options(problem), rules, tables)
    )
    search.advance(13.9953, 50_000)
    assert search.lower_bound > 0.83 * 13.9953


def test_the_bound_allows_for_calls_that_hold_up_the_last_train_call() -> None:
    """A plan of 22.25 s: without the calls of iteration 2 in the chain the bound would say 22.5."""
    rules = SimulationRules(staleness=1)
    problem = SearchProblem(
        num_devices=6,
        device_memory_bytes=1,
        call_names=("generate", "infer_1", "infer_2", "train_0", "train_1", "train_2"),
        call_model=np.array([0, 1, 2, 0, 1, 2]),
        call_kind=np.array([0, 1, 1, 2, 2, 2]),
        edges=np.array([(0, 1), (0, 2), *((a, b) for a in (0, 1, 2) for b in (3, 4, 5))]),
        option_call=np.arange(6),
        option_first_device=np.array([4, 1, 1, 4, 1, 1]),
        option_num_devices=np.array([1, 1, 3, 1, 2, 3]),
        option_seconds=np.array([13.0, 1.0, 13.0, 13.0, 1.0, 1.0]),
        option_resident_bytes=np.zeros(6, dtype=np.int64),
        option_active_bytes=np.zeros(6, dtype=np.int64),
        option_layout=np.arange(6),
        realloc_seconds={model: np.zeros((6, 6)) for model in range(3)},
    )
    tables = build_tables(problem, rules)
    bounds, tree = build_bounds(problem, distinct_options(problem), rules, tables)
    weights = np.zeros(bounds.relaxation.num_tasks + 2)
    assert bounds.relaxation.train_together
    assert problem.simulate(range(6), rules).seconds == 22.25
    assert choice_bound(*bounds, tree.root, weights, np.inf) <= 22.25
