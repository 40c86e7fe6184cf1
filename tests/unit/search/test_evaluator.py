"""The simulator and the compiled evaluator equal a slow reference exactly."""

import random

import numpy as np
import pytest

from realloc.cost.simulator import SimulationRules, WorkKind
from realloc.search.evaluator import evaluate, evaluate_fully, plan_peak_bytes
from realloc.search.space import build_tables
from tests.unit.search.random_problems import random_plan, random_problem
from tests.unit.search.slow_reference import Reference


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("windows", [False, True])
def test_three_simulators_give_equal_numbers(seed: int, windows: bool) -> None:
    """Readable simulator, compiled evaluator and slow reference agree to the last bit."""
    rng = random.Random(seed)
    for _ in range(12):
        problem = random_problem(rng, max_calls=rng.choice([3, 6, 9]), windows=windows)
        rules = SimulationRules(
            iterations=rng.choice([2, 5, 5, 6]), staleness=rng.choice([0, 0, 1, 2, 7])
        )
        tables = build_tables(problem, rules)
        for _ in range(4):
            plan = random_plan(rng, problem)
            reference = Reference(problem, plan, rules.iterations, rules.staleness)
            expected = reference.seconds()
            assert problem.simulate(plan, rules).seconds == expected
            chosen = np.array(plan)
            assert evaluate(*tables, chosen, np.inf) == expected
            assert evaluate_fully(*tables, chosen) == expected
            peak = reference.peak_bytes()
            assert problem.peak_bytes(plan) == peak
            assert plan_peak_bytes(*tables, chosen) == peak


@pytest.mark.parametrize("seed", range(10))
def test_timelines_commit_the_same_work_in_the_same_order(seed: int) -> None:
    """Start and end of every piece of work are those of the slow reference."""
    rng = random.Random(1000 + seed)
    for _ in range(10):
        problem = random_problem(rng, windows=rng.random() < 0.5)
        plan = random_plan(rng, problem)
        staleness = rng.choice([0, 1, 3])
        timeline = problem.simulate(plan, SimulationRules(staleness=staleness))
        expected = [
            (problem.call_names[work[1]], work[2], start, end)
            for work, start, end in Reference(problem, plan, 5, staleness).schedule()
            if work[0] == "call"
        ]
        found = [
            (work.name, work.iteration, work.start, work.end)
            for work in timeline.works
            if work.kind is WorkKind.CALL
        ]
        assert found == expected


@pytest.mark.parametrize("seed", range(10))
def test_a_cutoff_never_hides_a_better_plan(seed: int) -> None:
    """Below the cutoff the value is exact; at or above it, it stays at or above."""
    rng = random.Random(2000 + seed)
    for _ in range(20):
        problem = random_problem(rng, windows=rng.random() < 0.7)
        tables = build_tables(problem, SimulationRules())
        plan = np.array(random_plan(rng, problem))
        exact = evaluate_fully(*tables, plan)
        for cutoff in (exact * rng.random(), exact, exact + rng.random()):
            found = evaluate(*tables, plan, cutoff)
            assert found == exact if exact < cutoff else found >= cutoff


def test_a_plan_above_the_memory_is_infeasible_and_one_that_fills_it_is_not() -> None:
    """Infeasible means that a device's peak is larger than its memory."""
    rng = random.Random(7)
    for _ in range(200):
        memory = rng.randint(20, 120)
        problem = random_problem(rng, memory=memory)
        tables = build_tables(problem, SimulationRules())
        plan = random_plan(rng, problem)
        peak = Reference(problem, plan).peak_bytes()
        found = evaluate(*tables, np.array(plan), np.inf)
        assert (found == np.inf) == (peak > memory)
