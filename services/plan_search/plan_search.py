"""Searches execution plans: a first one at once, then better ones while time lasts."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from realloc.core.errors import InvalidInput, Problem, ResourceExhausted, Unavailable
from realloc.core.plan import ExecutionPlan
from realloc.cost.simulator import SimulationRules
from realloc.search.construction import PlanSpace, build_space
from realloc.search.default import DefaultSearcher
from realloc.search.first_plan import first_plan
from realloc.search.memory import raise_infeasible
from realloc.search.problem import SearchProblem
from realloc.search.searchers import warm_up
from services.plan_search.planning_request import (
    PlanningRequest,
    check_placements,
    with_evaluation,
)

_SEED = 0
_IMPOSSIBLE_SECONDS = 1e8
"""Of a plan with a move that the trainers cannot make; see `realloc.search.construction`."""
_COPIES = 4
"""Of the arrays of a problem that a search holds, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPlan:
    """A plan and what is known of better ones."""

    plan: ExecutionPlan
    num_evaluations: int
    """Plans decided so far."""
    lower_bound: float
    """No plan takes fewer seconds per iteration; 0 where nothing is proved yet."""


class PlanSearch:
    """A searcher that is compiled in the background; until then only first plans come."""

    def __init__(self, *, max_memory_bytes: int = 4 << 30) -> None:
        self._compiled = threading.Event()
        self._max_memory_bytes = max_memory_bytes

    def warm_up(self) -> None:
        """Compile the searcher, or read it from the cache: up to a minute the first time."""
        warm_up(DefaultSearcher())
        self._compiled.set()

    @property
    def is_compiled(self) -> bool:
        """False as long as only first plans come."""
        return self._compiled.is_set()

    def plans(
        self,
        request: PlanningRequest,
        *,
        seconds: float,
        cancelled: threading.Event | None = None,
    ) -> Iterator[FoundPlan]:
        """Plans, each better than the one before, or with a better bound.

        Args:
            cancelled: when it is set, the search ends within a slice of its work.

        Raises:
            InvalidInput: a pin is not legal, or no plan fits the cluster.
            ResourceExhausted: the search would need too much memory.
            Unavailable: the compiler is not ready, and the first plan does not fit.
        """
        task = request.task()
        space = build_space(task)
        self._check_memory(space.problem)
        options = first_plan(space.problem)
        best = math.inf
        if options is not None:
            best = space.problem.simulate(options).seconds
        if best < _IMPOSSIBLE_SECONDS and options is not None:
            plan = with_evaluation(task, space.plan(options, best))
            bound = best if space.problem.num_plans() == 1 else 0.0
            yield FoundPlan(plan=plan, num_evaluations=1, lower_bound=bound)
        elif not self._compiled.wait(timeout=seconds):
            raise Unavailable("the searcher is being compiled; ask again in a minute")
        if self._compiled.is_set() and space.problem.num_plans() > 1:
            yield from self._better(space, best, seconds, cancelled or threading.Event())

    def _better(
        self, space: PlanSpace, best: float, seconds: float, cancelled: threading.Event
    ) -> Iterator[FoundPlan]:
        proved = 0.0
        searcher = DefaultSearcher(clock=CancellableClock(cancelled))
        rules = SimulationRules()
        for result in searcher.search(space.problem, seconds=seconds, seed=_SEED, rules=rules):
            if result.seconds >= _IMPOSSIBLE_SECONDS:
                continue
            if result.seconds < best or result.lower_bound > proved:
                best, proved = min(best, result.seconds), result.lower_bound
                yield FoundPlan(
                    plan=with_evaluation(space.task, space.plan(result.options, result.seconds)),
                    num_evaluations=result.evaluations,
                    lower_bound=result.lower_bound,
                )
        if best >= _IMPOSSIBLE_SECONDS and not cancelled.is_set():
            raise_infeasible(space.problem)

    def _check_memory(self, problem: SearchProblem) -> None:
        arrays = sum(matrix.nbytes for matrix in problem.realloc_seconds.values())
        needed = _COPIES * arrays + 512 * problem.num_options
        if needed > self._max_memory_bytes:
            raise ResourceExhausted(
                f"the search needs {needed / 2**30:.1f} GiB and may have "
                f"{self._max_memory_bytes / 2**30:.1f} GiB; pin some calls, or plan fewer devices"
            )


def estimate(request: PlanningRequest, plan: ExecutionPlan) -> ExecutionPlan:
    """A given plan with its predictions, simulated.

    Raises:
        InvalidInput: a placement is not legal, or does not fit a device.
    """
    check_placements(request.graph, plan)
    task = request.task(plan)
    try:
        space = build_space(task)
        options = space.options_for(plan)
        assert options is not None, "the space holds the pinned placements and no others"
        seconds = space.problem.simulate(options).seconds
        return with_evaluation(task, space.plan(options, seconds))
    except InvalidInput as error:
        # The plan was handed on as pins.
        raise InvalidInput(
            *(Problem(p.path.replace("pins", "plan", 1), p.reason) for p in error.problems)
        ) from error


class CancellableClock:
    """A clock that jumps to the end of time when it is told to: no search outlives that."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def __call__(self) -> float:
        return math.inf if self._cancelled.is_set() else time.perf_counter()
