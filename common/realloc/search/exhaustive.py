"""Every plan, one after the other: the oracle on small spaces."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.compilation import compiled
from realloc.search.evaluator import evaluate
from realloc.search.memory import raise_infeasible
from realloc.search.problem import SearchProblem
from realloc.search.result import Clock, Progress, SearchResult
from realloc.search.space import Space, build_tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CHUNK = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustiveSearcher:
    """Enumerates all plans; proves the optimum if it has the time to end."""

    name: str = "exhaustive"
    clock: Clock = time.perf_counter

    def search(
        self, problem: SearchProblem, *, seconds: float, seed: int, rules: SimulationRules
    ) -> Iterator[SearchResult]:
        """See `Searcher.search`; the seed changes nothing."""
        tables = build_tables(problem, rules)
        options = [problem.options_of(call) for call in range(problem.num_calls)]
        starts = np.cumsum([0, *(len(o) for o in options)])
        flat = np.concatenate(options)
        digits = np.zeros(problem.num_calls, dtype=np.int64)
        progress = Progress(self.name, problem, seconds, self.clock)
        best = np.zeros(problem.num_calls, dtype=np.int64)
        found = np.array([np.inf])
        more = True
        while more and not progress.is_over:
            more = progress.evaluate(
                lambda: _enumerate(*tables, flat, starts, digits, best, found, _CHUNK)
            )
            if progress.offer(best, found[0]):
                yield progress.result()
        if not more:
            if not progress.options:
                raise_infeasible(problem)
            progress.prove(progress.seconds)
        yield progress.result()


@compiled
def _enumerate(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    flat: Ints,
    starts: Ints,
    digits: Ints,
    best: Ints,
    found: Floats,
    limit: int,
) -> tuple[bool, int]:
    """Evaluate up to `limit` plans from `digits` on; the last call's option changes fastest.

    Returns:
        Whether there are more plans, and how many were decided.
    """
    plan = np.empty(s.num_calls, dtype=np.int64)
    for done in range(limit):
        if digits[0] == starts[1] - starts[0]:
            return False, done
        for c in range(s.num_calls):
            plan[c] = flat[starts[c] + digits[c]]
        value = evaluate(s, ints, reals, moves, plan, found[0])
        if value < found[0]:
            found[0] = value
            best[:] = plan
        c = s.num_calls - 1
        digits[c] += 1
        while c > 0 and digits[c] == starts[c + 1] - starts[c]:
            digits[c] = 0
            c -= 1
            digits[c] += 1
    return True, limit
