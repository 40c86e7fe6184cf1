"""A plan without any search or compiler: good enough to begin with."""

import numpy as np

from realloc.search.problem import SearchProblem


def first_plan(problem: SearchProblem) -> tuple[int, ...] | None:
    """Each model in the one layout in which its calls, one after the other, are fastest.

    Calls that have no layout in common with their model's train call have their own fastest.

    Returns:
        An option per call; None where these plans do not fit the memory.
    """
    plan = [_fastest(problem, call) for call in range(problem.num_calls)]
    for train in range(problem.num_calls):
        if problem.train_call(train) != train:
            continue
        calls = [c for c in range(problem.num_calls) if problem.train_call(c) == train]
        plan = _with_one_layout(problem, plan, calls)
    return tuple(plan) if problem.peak_bytes(plan) <= problem.device_memory_bytes else None


def _fastest(problem: SearchProblem, call: int) -> int:
    options = problem.options_of(call)
    return int(options[np.argmin(problem.option_seconds[options])])


def _with_one_layout(problem: SearchProblem, plan: list[int], calls: list[int]) -> list[int]:
    """The plan with those of the calls in one layout that can share one, in the best one."""
    by_layout: dict[int, dict[int, int]] = {}
    for call in calls:
        options = problem.options_of(call)
        for option in options[np.argsort(problem.option_seconds[options], kind="stable")]:
            layout = int(problem.option_layout[option])
            if layout >= 0:
                by_layout.setdefault(layout, {}).setdefault(call, int(option))
    if not by_layout:
        return plan
    most = max(len(chosen) for chosen in by_layout.values())
    best = min(
        (chosen for chosen in by_layout.values() if len(chosen) == most),
        key=lambda chosen: sum(float(problem.option_seconds[o]) for o in chosen.values()),
    )
    return [best.get(call, option) for call, option in enumerate(plan)]
