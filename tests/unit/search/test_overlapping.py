"""What staleness lets run ahead, and the bound that knows it."""

import numpy as np

from realloc.cost.simulator import SimulationRules
from realloc.search.bound_tables import build_bounds
from realloc.search.branch_and_bound import BranchAndBound
from realloc.search.candidates import distinct_options
from realloc.search.overlapping import delays
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
