"""The baseline: every call on the whole cluster, as Megatron-style systems place them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.candidates import Candidates, distinct_options, gather
from realloc.search.evaluator import evaluate
from realloc.search.local_search import descend, shed_memory
from realloc.search.memory import raise_infeasible, smallest_memory
from realloc.search.problem import SearchProblem
from realloc.search.result import Clock, Progress, SearchResult
from realloc.search.space import Tables, build_tables

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeuristicSearcher:
    """All calls on the largest mesh, each with its best strategy there."""

    name: str = "heuristic"
    clock: Clock = time.perf_counter

    def search(
        self, problem: SearchProblem, *, seconds: float, seed: int, rules: SimulationRules
    ) -> Iterator[SearchResult]:
        """See `Searcher.search`; neither the seed nor the time changes anything."""
        progress = Progress(self.name, problem, seconds, self.clock)
        tables = build_tables(problem, rules)
        progress.offer(*progress.evaluate(lambda: symmetric_plan(problem, tables)))
        yield progress.result()


def symmetric_plan(problem: SearchProblem, tables: Tables) -> tuple[tuple[Ints, float], int]:
    """The best symmetric plan that coordinate descent finds, its seconds, and plans decided.

    Where no symmetric plan fits the memory, the plan that needs the least memory is improved
    over all options instead.

    Raises:
        InvalidInput: no plan at all fits the memory.
    """
    everything = distinct_options(problem)
    for candidates in (_on_largest_mesh(problem, everything), everything):
        calls = range(problem.num_calls)
        if any(len(candidates.of(call)) == 0 for call in calls):
            continue
        plan = np.array([_fastest(problem, candidates.of(call)) for call in calls])
        if not shed_memory(*tables, candidates.options, candidates.starts, plan, 0):
            continue
        value = evaluate(*tables, plan, np.inf)
        value, decided = descend(*tables, candidates.options, candidates.starts, plan, value, 0)
        return (plan, value), decided + 1
    peak, plan, _ = smallest_memory(problem)
    if peak > problem.device_memory_bytes:
        raise_infeasible(problem)
    value = evaluate(*tables, plan, np.inf)
    value, decided = descend(*tables, everything.options, everything.starts, plan, value, 0)
    return (plan, value), decided + 1


def _on_largest_mesh(problem: SearchProblem, candidates: Candidates) -> Candidates:
    """Of each call the options on as many devices as it can have, the first such mesh only."""
    kept = []
    for call in range(problem.num_calls):
        options = candidates.of(call)
        sizes = problem.option_num_devices[options]
        options = options[sizes == sizes.max(initial=0)]
        firsts = problem.option_first_device[options]
        kept.append(options[firsts == firsts.min(initial=problem.num_devices)])
    return gather(kept)


def _fastest(problem: SearchProblem, options: Ints) -> int:
    return int(options[np.argmin(problem.option_seconds[options])])
