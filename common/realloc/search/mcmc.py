"""ReaL's searcher, for comparison: Metropolis sampling of plans by exp(−β × cost).

Source: ReaL, arXiv 2406.14088, section 5.2: the chain starts from the plan in which each call
alone is fastest, a move gives one random call a random option, and the cost of a plan that
does not fit the memory is its seconds times a large factor.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.candidates import distinct_options
from realloc.search.compilation import compiled
from realloc.search.evaluator import MARGIN, evaluate, evaluate_fully
from realloc.search.memory import raise_infeasible, smallest_memory
from realloc.search.problem import SearchProblem
from realloc.search.random_numbers import (
    RandomState,
    new_random_state,
    random_below,
    random_real,
)
from realloc.search.result import Clock, Progress, SearchResult
from realloc.search.space import Space, build_tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CHUNK = 100_000
_OVERFLOW_FACTOR = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class McmcSearcher:
    """Metropolis–Hastings with single-call proposals; it runs until the time is over."""

    name: str = "mcmc"
    clock: Clock = time.perf_counter
    relative_beta: float = 100.0
    """β times the seconds of the first plan that fits: with 100, a plan that is 1 % slower is
    accepted with probability 1/e."""

    def search(
        self, problem: SearchProblem, *, seconds: float, seed: int, rules: SimulationRules
    ) -> Iterator[SearchResult]:
        """See `Searcher.search`."""
        tables = build_tables(problem, rules)
        candidates = distinct_options(problem)
        if any(len(candidates.of(call)) == 0 for call in range(problem.num_calls)):
            raise_infeasible(problem)
        progress = Progress(self.name, problem, seconds, self.clock)
        chosen = [candidates.of(call) for call in range(problem.num_calls)]
        plan = np.array([o[np.argmin(problem.option_seconds[o])] for o in chosen])
        best = plan.copy()
        found = np.array([np.inf, -1.0])  # best seconds, cost of the current plan
        state = new_random_state(seed)
        scale = evaluate_fully(*tables, plan)
        beta = self.relative_beta / scale if scale > 0 else self.relative_beta
        while not progress.is_over:
            arrays = (candidates.options, candidates.starts, plan, best, found)
            seconds_found = progress.evaluate(
                lambda: _walk(*tables, *arrays, beta, _CHUNK, state)  # noqa: B023  # called at once
            )
            if progress.offer(best, seconds_found):
                yield progress.result()
        if not progress.options:
            peak, least, _ = smallest_memory(problem)
            if peak > problem.device_memory_bytes:
                raise_infeasible(problem)
            progress.offer(least, evaluate_fully(*tables, least))
        yield progress.result()


@compiled
def _walk(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    options: Ints,
    starts: Ints,
    plan: Ints,
    best: Ints,
    found: Floats,
    beta: float,
    steps: int,
    state: RandomState,
) -> tuple[float, int]:
    """Advance the chain; `found` holds the best seconds and the cost of `plan` (−1: unknown)."""
    if found[1] < 0.0:
        found[1] = _cost(s, ints, reals, moves, plan, best, found, np.inf)
    for _ in range(steps):
        c = random_below(state, s.num_calls)
        kept = plan[c]
        plan[c] = options[starts[c] + random_below(state, starts[c + 1] - starts[c])]
        # Accepted where a random real is below exp(−β × how much worse): known before the cost.
        limit = found[1] - np.log(1.0 - random_real(state)) / beta
        cost = _cost(s, ints, reals, moves, plan, best, found, limit)
        if cost <= limit:
            found[1] = cost
        else:
            plan[c] = kept
    return found[0], steps


@compiled
def _cost(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    plan: Ints,
    best: Ints,
    found: Floats,
    limit: float,
) -> float:
    """The cost of a plan; where it is above the limit, any number that is."""
    seconds = evaluate(s, ints, reals, moves, plan, limit * (1.0 + MARGIN))
    if seconds == np.inf:
        return evaluate_fully(s, ints, reals, moves, plan) * _OVERFLOW_FACTOR
    if seconds < found[0]:
        found[0] = seconds
        best[:] = plan
    return seconds
