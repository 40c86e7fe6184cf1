"""Searchers agree with brute force, and no plan falls below a bound."""

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from realloc.core.errors import InvalidInput
from realloc.cost.simulator import SimulationRules
from realloc.search.bound_tables import build_bounds
from realloc.search.bounds import choice_bound, weighted_bound
from realloc.search.branch_and_bound import BranchAndBound
from realloc.search.candidates import distinct_options
from realloc.search.default import DefaultSearcher
from realloc.search.evaluator import evaluate
from realloc.search.exhaustive import ExhaustiveSearcher
from realloc.search.option_tree import OptionTree
from realloc.search.problem import Ints, SearchProblem
from realloc.search.result import SearchResult, search_to_end
from realloc.search.searchers import NAMES, searcher_named, tiny_problem, warm_up
from realloc.search.space import build_tables
from tests.unit.search.random_problems import random_problem

SLOW = 600.0


def _small_problem(rng: random.Random, windows: bool, **more: int) -> SearchProblem:
    while True:
        calls = rng.choice([2, 3, 4, 5, 6])
        problem = random_problem(rng, max_calls=calls, windows=windows, **more)
        if problem.num_plans() <= 3000:
            return problem


def _all_plans(problem: SearchProblem) -> list[tuple[int, ...]]:
    return list(itertools.product(*(problem.options_of(c) for c in range(problem.num_calls))))


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_default_searcher_proves_the_optimum_that_brute_force_finds(
    seed: int, windows: bool
) -> None:
    """Seconds equal those of the best of all plans, and the gap closes."""
    rng = random.Random(seed)
    for _ in range(25):
        problem = _small_problem(rng, windows, memory=rng.choice([60, 120, 10**9]))
        rules = SimulationRules(staleness=rng.choice([0, 0, 0, 1, 2]))
        tables = build_tables(problem, rules)
        plans = np.array(_all_plans(problem))
        best = min(evaluate(*tables, plan, np.inf) for plan in plans)
        if best == np.inf:
            with pytest.raises(InvalidInput, match="no plan fits"):
                search_to_end(DefaultSearcher(), problem, seconds=SLOW, rules=rules)
            continue
        found = search_to_end(DefaultSearcher(), problem, seconds=SLOW, rules=rules)
        assert (found.seconds, found.lower_bound, found.gap) == (best, best, 0.0)
        assert problem.simulate(found.options, rules).seconds == best
        assert found.peak_bytes == problem.peak_bytes(found.options)
        assert found.peak_bytes <= problem.device_memory_bytes


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_no_plan_falls_below_the_bound_of_any_choice_that_contains_it(
    seed: int, windows: bool
) -> None:
    """For random sets of options, every plan from them takes at least the bound."""
    rng = random.Random(5000 + seed)
    for _ in range(40):
        problem = _small_problem(rng, windows, memory=rng.choice([60, 90, 120, 10**9]))
        rules = SimulationRules(
            iterations=rng.choice([2, 5, 5]), staleness=rng.choice([0, 0, 0, 1, 3])
        )
        candidates = distinct_options(problem)
        if any(len(candidates.of(call)) == 0 for call in range(problem.num_calls)):
            continue
        tables = build_tables(problem, rules)
        bounds, tree = build_bounds(problem, candidates, rules, tables)
        weights = np.zeros((2, bounds.relaxation.num_tasks + 2))
        for _ in range(6):
            choice = _refined(rng, tree, tree.root, rng.randint(0, 3 * problem.num_calls))
            within = _refined(rng, tree, choice, 1)
            bound = choice_bound(*bounds, choice, weights[0], np.inf)
            quick = weighted_bound(*bounds, within, weights[0]) if bound < np.inf else np.inf
            for plan in _plans_of(problem, tree, choice):
                assert evaluate(*tables, np.array(plan), np.inf) >= bound * (1 - 1e-12)
            for plan in _plans_of(problem, tree, within):
                assert evaluate(*tables, np.array(plan), np.inf) >= quick * (1 - 1e-12)


def _refined(rng: random.Random, tree: OptionTree, choice: Ints, times: int) -> Ints:
    """A choice within a choice: some calls' sets give way to children of theirs."""
    found = choice.copy()
    for _ in range(times):
        call = rng.randrange(len(found))
        count = int(tree.child_count[found[call]])
        if count:
            found[call] = tree.child_start[found[call]] + rng.randrange(count)
    return found


def _plans_of(problem: SearchProblem, tree: OptionTree, choice: Ints) -> Iterator[tuple[int, ...]]:
    """Plans from the sets of a choice, of which some calls follow and some surely do not."""
    shared = {c: problem.train_call(c) for c in range(problem.num_calls) if tree.follow[c] >= 0}
    for plan in itertools.product(*(_members(tree, int(node)) for node in choice)):
        layout = problem.option_layout[list(plan)]
        if all(
            choice[c] == tree.root[c]
            or (layout[c] == layout[t] and layout[c] >= 0) == (choice[c] == tree.follow[c])
            for c, t in shared.items()
        ):
            yield plan


def _members(tree: OptionTree, node: int) -> list[int]:
    if tree.option[node] >= 0:
        return [int(tree.option[node])]
    if node in tree.follow:
        node = int(tree.root[list(tree.follow).index(node)])
    start, count = int(tree.child_start[node]), int(tree.child_count[node])
    return [
        option
        for child in range(start, start + count)
        if child not in tree.follow
        for option in _members(tree, child)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_search_equals_brute_force(seed: int) -> None:
    """The oracle itself: the smallest of all simulated seconds."""
    rng = random.Random(7000 + seed)
    for _ in range(20):
        problem = _small_problem(rng, windows=rng.random() < 0.5)
        simulated = [problem.simulate(plan).seconds for plan in _all_plans(problem)[:400]]
        found = search_to_end(ExhaustiveSearcher(), problem, seconds=SLOW)
        assert found.seconds <= min(simulated)
        assert found.seconds == problem.simulate(found.options).seconds
        assert found.gap == 0.0


def test_a_slower_option_may_make_a_faster_plan_and_is_found() -> None:
    """Graham's anomaly: leaving out slower options would miss the optimum."""
    problem = _anomaly()
    tables = build_tables(problem, SimulationRules())
    with_fast = evaluate(*tables, np.array([0, 1, 2, 3, 4, 5, 6]), np.inf)
    with_slow = evaluate(*tables, np.array([0, 7, 2, 3, 4, 5, 6]), np.inf)
    assert (with_slow, with_fast) == (11.0, 14.0)
    found = search_to_end(DefaultSearcher(), problem, seconds=SLOW)
    assert found.options == (0, 7, 2, 3, 4, 5, 6)
    assert found.gap == 0.0


def _anomaly() -> SearchProblem:
    """Where `score` takes 1 s, `filter` claims the device that `judge` needs first."""
    return SearchProblem(
        num_devices=3,
        device_memory_bytes=1,
        call_names=("generate", "score", "prepare", "filter", "judge", "merge", "train"),
        call_model=np.array([0, 1, 2, 3, 4, 5, 0]),
        call_kind=np.array([0, 1, 1, 1, 1, 1, 2]),
        edges=np.array([[0, 1], [0, 2], [1, 3], [2, 4], [4, 5], [3, 6], [5, 6]]),
        option_call=np.array([0, 1, 2, 3, 4, 5, 6, 1]),
        option_first_device=np.array([0, 0, 1, 2, 2, 1, 0, 0]),
        option_num_devices=np.array([3, 1, 1, 1, 1, 1, 3, 1]),
        option_seconds=np.array([1.0, 1.0, 2.0, 4.0, 3.0, 4.0, 1.0, 2.5]),
        option_resident_bytes=np.zeros(8, dtype=np.int64),
        option_active_bytes=np.zeros(8, dtype=np.int64),
        option_layout=np.full(8, -1),
        realloc_seconds={},
    )


def test_moves_of_two_calls_at_once_are_found() -> None:
    """Two calls that pay off only on disjoint meshes together leave the plan they start from."""
    problem = needs_two_moves()
    found = search_to_end(DefaultSearcher(), problem, seconds=SLOW)
    assert found.gap == 0.0
    placed = problem.place(found.options)
    assert not placed[1].devices.overlaps(placed[2].devices)


def needs_two_moves() -> SearchProblem:
    """Scoring takes 2 + 2 s on both devices one after the other, 3 s side by side."""
    return SearchProblem(
        num_devices=2,
        device_memory_bytes=1,
        call_names=("generate", "reward", "reference", "train"),
        call_model=np.array([0, 1, 2, 0]),
        call_kind=np.array([0, 1, 1, 2]),
        edges=np.array([[0, 1], [0, 2], [1, 3], [2, 3]]),
        option_call=np.array([0, 1, 1, 1, 2, 2, 2, 3]),
        option_first_device=np.array([0, 0, 0, 1, 0, 0, 1, 0]),
        option_num_devices=np.array([2, 2, 1, 1, 2, 1, 1, 2]),
        option_seconds=np.array([1.0, 2.0, 3.0, 3.0, 2.0, 3.0, 3.0, 1.0]),
        option_resident_bytes=np.zeros(8, dtype=np.int64),
        option_active_bytes=np.zeros(8, dtype=np.int64),
        option_layout=np.full(8, -1),
        realloc_seconds={},
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_searcher_returns_what_the_simulator_says_and_improves_in_time(name: str) -> None:
    """Results are exact, fit the memory, and each yielded one is at least as good as the last."""
    rng = random.Random(3)
    for _ in range(10):
        problem = _small_problem(rng, windows=True)
        results = list(
            searcher_named(name).search(problem, seconds=0.2, seed=1, rules=SimulationRules())
        )
        for earlier, later in itertools.pairwise(results):
            assert later.seconds <= earlier.seconds
            assert later.lower_bound >= earlier.lower_bound
        last = results[-1]
        assert last.seconds == problem.simulate(last.options).seconds
        assert last.peak_bytes == problem.peak_bytes(last.options)
        assert last.lower_bound <= last.seconds
        assert [i.seconds for i in last.trace] == sorted(i.seconds for i in last.trace)[::-1]


@pytest.mark.parametrize("name", ["default", "mcmc"])
def test_equal_seeds_walk_equal_ways(name: str) -> None:
    """Two searches with one seed find the same plans after the same numbers of evaluations."""
    rng = random.Random(11)
    problem = random_problem(rng, max_calls=9, max_options=30, windows=True, max_devices=16)

    def trace() -> list[tuple[int, float]]:
        result: SearchResult = search_to_end(searcher_named(name), problem, seconds=1.0, seed=5)
        return [(improvement.evaluations, improvement.seconds) for improvement in result.trace]

    one, two = trace(), trace()
    assert one[: len(two)] == two[: len(one)]


def test_an_infeasible_problem_names_the_smallest_memory_that_would_do() -> None:
    """With that many bytes a plan fits, with one fewer none does."""
    rng = random.Random(13)
    for _ in range(30):
        problem = _small_problem(rng, windows=rng.random() < 0.5, memory=0)
        needs = min(problem.peak_bytes(plan) for plan in _all_plans(problem))
        if needs == 0:
            continue
        for name in NAMES:
            with pytest.raises(InvalidInput, match=f"smallest that would do is {needs} "):
                search_to_end(searcher_named(name), problem, seconds=SLOW if name != "mcmc" else 0)


def test_the_tiny_problem_is_solved_by_every_searcher() -> None:
    """The warm-up problem has an optimum that the oracle knows."""
    optimum = search_to_end(ExhaustiveSearcher(), tiny_problem(), seconds=SLOW).seconds
    for name in ("default", "mcmc"):
        found = search_to_end(searcher_named(name), tiny_problem(), seconds=0.5)
        assert found.seconds == optimum


@pytest.mark.parametrize("seed", range(4))
def test_few_open_choices_prove_the_same(seed: int) -> None:
    """Where only three choices may be open, the rest is refined depth first, and none is lost."""
    rng = random.Random(9000 + seed)
    for _ in range(10):
        problem = _small_problem(rng, windows=rng.random() < 0.5, memory=rng.choice([90, 10**9]))
        rules = SimulationRules(staleness=rng.choice([0, 1]))
        tables = build_tables(problem, rules)
        best = min(evaluate(*tables, np.array(p), np.inf) for p in _all_plans(problem))
        bounds, tree = build_bounds(problem, distinct_options(problem), rules, tables)
        if any(tree.child_count[root] == 0 for root in tree.root) or best == np.inf:
            continue
        search = BranchAndBound(tables, bounds, tree, most_open=3)
        seconds, proved = np.inf, 0.0
        while search.lower_bound < np.inf:
            assert search.lower_bound >= proved
            assert min(search.lower_bound * (1 - 1e-9), seconds) <= best
            proved = search.lower_bound
            search.advance(seconds, 10)
            seconds = search.best_seconds
        assert seconds == best


def test_warming_up_compiles_all_that_a_search_needs() -> None:
    """No search waits for the compiler afterwards."""
    code = (
        "from realloc.search.searchers import *; from tools.bench.search_problems import *;"
        "warm_up(searcher_named('default')); import numba.core.dispatcher as d;"
        "d.Dispatcher.compile = lambda *a: exit('compiles ' + str(a));"
        "p = build_problem(WORKLOADS['safe-rlhf-8']);"
        "search_to_end(searcher_named('default'), p, seconds=1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_warm_up_goes_to_its_end_on_any_machine() -> None:
    """It asks no clock: one that is late would end it before everything is compiled."""

    def clock() -> float:
        raise AssertionError("the warm-up asked what time it is")

    warm_up(DefaultSearcher(clock=clock))
