"""Walks leave plans that no move of two calls makes better."""

from dataclasses import replace

import numpy as np

from realloc.cost.simulator import SimulationRules
from realloc.search.bound_tables import build_bounds
from realloc.search.candidates import distinct_options
from realloc.search.neighbourhoods import Neighbourhoods
from realloc.search.problem import SearchProblem
from realloc.search.random_numbers import new_random_state
from realloc.search.result import Progress
from realloc.search.space import build_tables
from tests.unit.search.test_searchers import needs_two_moves


def _walk(problem: SearchProblem, plan: list[int], choices: int) -> Progress:
    rules = SimulationRules()
    tables = build_tables(problem, rules)
    bounds, tree = build_bounds(problem, distinct_options(problem), rules, tables)
    progress = Progress("walk", problem, 60.0, lambda: 0.0)
    progress.offer(plan, problem.simulate(plan, rules).seconds)
    walks = Neighbourhoods(problem, tables, bounds, tree, new_random_state(0))
    walks.improve(progress, choices)
    assert walks.is_idle or choices == 0
    return progress


def _three_side_by_side() -> SearchProblem:
    """Three scores take 2 + 2 + 2 s on three devices, 3 s side by side: no two moves pay off."""
    two = needs_two_moves()
    devices = [(0, 3), *[(0, 3), (0, 1), (1, 1), (2, 1)] * 3, (0, 3)]
    return replace(
        two,
        num_devices=3,
        call_names=("generate", "reward", "cost", "reference", "train"),
        call_model=np.array([0, 1, 2, 3, 0]),
        call_kind=np.array([0, 1, 1, 1, 2]),
        edges=np.array([[0, c] for c in (1, 2, 3)] + [[c, 4] for c in (1, 2, 3)]),
        option_call=np.array([0, *np.repeat([1, 2, 3], 4), 4]),
        option_first_device=np.array([first for first, _ in devices]),
        option_num_devices=np.array([num for _, num in devices]),
        option_seconds=np.array([1.0, *[2.0, 5.0, 5.0, 5.0] * 3, 1.0]),
        option_resident_bytes=np.zeros(14, dtype=np.int64),
        option_active_bytes=np.zeros(14, dtype=np.int64),
        option_layout=np.full(14, -1),
    )


def test_a_walk_moves_three_calls_at_once() -> None:
    """Where one or two calls on meshes of their own are slower, three are found."""
    progress = _walk(_three_side_by_side(), [0, 1, 5, 9, 13], 10_000)
    assert progress.seconds == 7.0


def test_a_walk_that_may_look_at_nothing_stays() -> None:
    """The budget is kept."""
    progress = _walk(_three_side_by_side(), [0, 1, 5, 9, 13], 0)
    assert progress.seconds == 8.0
