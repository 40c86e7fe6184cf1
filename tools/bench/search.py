"""Speed and quality of the plan searchers on the problems of ``search_problems.py``.

    PYTHONPATH=common:. python -m tools.bench.search --seconds 30

Seconds are those of the process on one core, so that a shared machine tells about the searcher
and not about its neighbours. Prints Markdown tables.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.compilation import compiled
from realloc.search.default import DefaultSearcher
from realloc.search.evaluator import evaluate_fully
from realloc.search.heuristic import HeuristicSearcher
from realloc.search.mcmc import McmcSearcher
from realloc.search.problem import SearchProblem
from realloc.search.result import ROUNDING, Searcher, SearchResult
from realloc.search.searchers import warm_up
from realloc.search.space import Space, build_tables
from tools.bench.search_problems import NAMES, problem_named

PLANS = 200_000
RULES = SimulationRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a searcher had when its clock showed some seconds."""

    seconds: float
    result: SearchResult | None
    """None where it had no plan yet."""


def full_simulations_per_second(problem: SearchProblem) -> float:
    """Random plans, each simulated to the end: no bound, no cutoff, nothing incremental."""
    tables = build_tables(problem, RULES)
    rng = np.random.default_rng(0)
    calls = range(problem.num_calls)
    plans = np.stack([rng.choice(problem.options_of(call), PLANS) for call in calls], axis=1)
    _simulate_all(*tables, plans[:10])
    best = np.inf
    for _ in range(3):
        begin = time.process_time()
        _simulate_all(*tables, plans)
        best = min(best, time.process_time() - begin)
    return float(PLANS / best)


@compiled
def _simulate_all(
    space: Space,
    ints: NDArray[np.int64],
    reals: NDArray[np.float64],
    moves: NDArray[np.float64],
    plans: NDArray[np.int64],
) -> float:
    total = 0.0
    for i in range(len(plans)):
        total += evaluate_fully(space, ints, reals, moves, plans[i])
    return total


def marks_of(
    searcher: Searcher, problem: SearchProblem, marks: list[float], seed: int
) -> Iterator[Mark]:
    """The results at given seconds of one search."""
    last: SearchResult | None = None
    left = sorted(marks)
    for result in searcher.search(problem, seconds=left[-1], seed=seed, rules=RULES):
        while left and result.elapsed_seconds > left[0] and left[0] < max(marks):
            yield Mark(seconds=left.pop(0), result=last)
        last = result
    for seconds in left:
        yield Mark(seconds=seconds, result=last)


def print_speed(names: list[str]) -> None:
    print("| problem | plans | full simulations/s | plans decided/s in the search |")
    print("|---|---|---|---|")
    for name in names:
        problem = problem_named(name)
        full = full_simulations_per_second(problem)
        searcher = DefaultSearcher(clock=time.process_time)
        *_, result = searcher.search(problem, seconds=2.0, seed=0, rules=RULES)
        decided = result.evaluations_per_second
        print(f"| {name} | {problem.num_plans():.0e} | {full:,.0f} | {decided:,.0f} |")


def print_quality(names: list[str], marks: list[float], seeds: list[int]) -> None:
    head = " | ".join(f"{mark:g} s" for mark in marks)
    print(f"| problem | searcher | seed | {head} | evaluations/s | proven |")
    print("|---|---|---|" + "---|" * (len(marks) + 2))
    for name in names:
        problem = problem_named(name)
        for searcher in (
            HeuristicSearcher(clock=time.process_time),
            *([] if "+" in name else [McmcSearcher(clock=time.process_time)]),
            DefaultSearcher(clock=time.process_time),
        ):
            for seed in seeds if searcher.name != "heuristic" else [0]:
                found = list(marks_of(searcher, problem, marks, seed))
                print(f"| {name} | {searcher.name} | {seed} | {_row(found)} |", flush=True)


def _row(marks: list[Mark]) -> str:
    cells = [_cell(mark.result) for mark in marks]
    last = marks[-1].result
    assert last is not None, "a finished search has a result"
    proven = f"after {last.elapsed_seconds:.2f} s" if last.gap <= ROUNDING else "no"
    return " | ".join([*cells, f"{last.evaluations_per_second:,.0f}", proven])


def _cell(result: SearchResult | None) -> str:
    if result is None:
        return "–"
    gap = f" (gap {result.gap:.1%})" if result.lower_bound > 0 else ""
    return f"{result.seconds:.4f}{gap}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parsed = parser.parse_args()
    for searcher in (DefaultSearcher(), McmcSearcher(), HeuristicSearcher()):
        warm_up(searcher)
    print(f"{_processor()}, Python {platform.python_version()}, one core\n")
    print_speed([name for name in parsed.problems if "+" not in name])
    print()
    marks = sorted({mark for mark in (1.0, 2.0, 5.0) if mark < parsed.seconds} | {parsed.seconds})
    print_quality(parsed.problems, marks, parsed.seeds)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        return lines[0]
    except (OSError, IndexError):
        return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
