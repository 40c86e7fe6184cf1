"""What a search found so far, and how good it can be at most."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput
from realloc.cost.simulator import SimulationRules
from realloc.search.problem import SearchProblem

T = TypeVar("T")

ROUNDING = 1e-8
"""A relative gap that is due to the order in which float64 numbers are added."""

Clock = Callable[[], float]
"""Seconds since some time: ``time.perf_counter``, or ``time.process_time`` where the machine is
shared and a benchmark is to count its own work only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """A better plan, when it was found."""

    elapsed_seconds: float
    evaluations: int
    seconds: float
    """Simulated seconds per iteration of the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best plan known at some time of a search."""

    searcher: str
    options: tuple[int, ...]
    """Option index of each call, in call order."""
    seconds: float
    """Simulated seconds per iteration."""
    peak_bytes: int
    """Largest peak over the devices."""
    lower_bound: float
    """No feasible plan takes fewer seconds; 0 where nothing was proved."""
    evaluations: int
    """Plans decided: simulated, or known by an exact bound to be no better than the best."""
    evaluations_per_second: float
    """While plans were evaluated, without the time for bounds and tables."""
    elapsed_seconds: float
    trace: tuple[Improvement, ...]

    @property
    def gap(self) -> float:
        """(seconds − lower bound) / seconds, 0 where the plan is proven optimal."""
        return (self.seconds - self.lower_bound) / self.seconds if self.seconds > 0 else 0.0

    @property
    def proof(self) -> str:
        """What is proved, in words."""
        if self.gap <= ROUNDING:
            return "proven optimal"
        return f"at most {100 * self.gap:.2g} % above the optimum"


class Searcher(Protocol):
    """Finds a plan of few seconds per iteration that fits the memory."""

    @property
    def name(self) -> str:
        """What users select it by."""
        ...

    def search(
        self,
        problem: SearchProblem,
        *,
        seconds: float,
        seed: int,
        rules: SimulationRules,
    ) -> Iterator[SearchResult]:
        """Yield a result per improvement of the plan or the bound; the last one is final.

        Ends when the time is over or the plan is proven optimal.

        Raises:
            InvalidInput: no plan fits the memory.
        """
        ...


def search_to_end(
    searcher: Searcher,
    problem: SearchProblem,
    *,
    seconds: float,
    seed: int = 0,
    rules: SimulationRules | None = None,
) -> SearchResult:
    """The final result of a search."""
    rules = rules or SimulationRules()
    return list(searcher.search(problem, seconds=seconds, seed=seed, rules=rules))[-1]


class Progress:
    """The best plan and bound of a running search, and its clock."""

    def __init__(self, searcher: str, problem: SearchProblem, seconds: float, clock: Clock) -> None:
        self._searcher = searcher
        self._problem = problem
        self._limit = seconds
        self._clock = clock
        self._begin = clock()
        self._trace: list[Improvement] = []
        self.options: tuple[int, ...] = ()
        self.seconds = math.inf
        self.lower_bound = 0.0
        self.evaluations = 0
        self._timed_evaluations = 0
        self._evaluating_seconds = 0.0

    def evaluate(self, stretch: Callable[[], tuple[T, int]]) -> T:
        """Run a stretch of evaluations; it returns a value and how many plans it decided."""
        begin = self._clock()
        value, decided = stretch()
        self._evaluating_seconds += self._clock() - begin
        self._timed_evaluations += decided
        self.evaluations += decided
        return value

    @property
    def elapsed_seconds(self) -> float:
        return self._clock() - self._begin

    @property
    def is_over(self) -> bool:
        """The time is up, or the gap is closed."""
        return self.is_proven or self.elapsed_seconds >= self._limit

    @property
    def is_proven(self) -> bool:
        return bool(self.options) and self.lower_bound >= self.seconds

    def offer(self, plan: Sequence[int] | NDArray[np.int64], seconds: float) -> bool:
        """Keep a plan if it is better; true where it was."""
        if seconds >= self.seconds:
            return False
        self.seconds = float(seconds)
        self.options = tuple(int(option) for option in plan)
        self._trace.append(
            Improvement(
                elapsed_seconds=self.elapsed_seconds,
                evaluations=self.evaluations,
                seconds=self.seconds,
            )
        )
        return True

    def prove(self, lower_bound: float) -> bool:
        """Keep a bound if it is better; true where it was. It never exceeds the best plan."""
        bound = min(lower_bound, self.seconds)
        if bound <= self.lower_bound:
            return False
        self.lower_bound = float(bound)
        return True

    def result(self) -> SearchResult:
        """The state as a value."""
        if not self.options:
            raise InvalidInput.at("seconds", "is too short: no plan that fits was found in time")
        return SearchResult(
            searcher=self._searcher,
            options=self.options,
            seconds=self.seconds,
            peak_bytes=self._problem.peak_bytes(self.options),
            lower_bound=self.lower_bound,
            evaluations=self.evaluations,
            evaluations_per_second=self._timed_evaluations / max(self._evaluating_seconds, 1e-9),
            elapsed_seconds=self.elapsed_seconds,
            trace=tuple(self._trace),
        )
