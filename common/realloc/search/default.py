"""The default searcher: local search from above, branch and bound from below, in turns.

Both work in slices counted in plans and choices, not in seconds, so that a seed gives the same
sequence of plans on every machine; the clock only says after which slice to stop.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.bound_tables import build_bounds
from realloc.search.branch_and_bound import BranchAndBound
from realloc.search.candidates import Candidates, distinct_options
from realloc.search.evaluator import MARGIN, evaluate
from realloc.search.heuristic import symmetric_plan
from realloc.search.local_search import descend, descend_pair, wander
from realloc.search.narrowing import may_improve
from realloc.search.neighbourhoods import Neighbourhoods
from realloc.search.problem import SearchProblem
from realloc.search.random_numbers import RandomState, new_random_state, random_below, random_real
from realloc.search.result import Clock, Progress, SearchResult
from realloc.search.space import Tables, build_tables

Ints = NDArray[np.int64]


_NOISE = 0.1
"""How wrong a dive takes bounds to be, at most, so that dives from one place differ."""

_DIVES, _WIDE_GAP = 60, 0.01
"""Plans that are dived for in one turn of local search; below the gap fewer, in proportion."""

_TIES = 4
"""Turns for plans that the bound cannot tell from the best: few spaces have more of them."""

_PLACES, _STRIDE = 512, 5
"""Dives begin at so many open choices from the least bound on, all of them in turn (a linear
congruential sequence of full period)."""

_LONGEST_TURN = 12
"""While no better plan is found, turns of the proof grow, up to so many times the shortest."""

_WALK = 15
"""Choices of walks through neighbourhoods in a turn, in the proof's shortest turns. While no
better plan is found, they become fewer."""

_WALK_PER_OPTION = 6
"""And of small problems so many per option: their proof ends soon."""

_SMALL = 3
"""How much longer the turns of such a proof are."""

_MOST_HALVINGS = 4
"""Of that, one for each walk that came to a plan where another had been."""

_PROBES = 2
"""Of so many dives all but one begin with one call at a random option, all others open."""

_SLACK = 1.02
"""How far above the best plan a dive's bound may be: descent may bring it below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultSearcher:
    """Walks through neighbourhoods large and small, and a proof of a bound."""

    name: str = "default"
    clock: Clock = time.perf_counter
    slice_plans: int = 16_000
    """Plans that local search decides in one turn."""
    slice_choices: int = 2_000
    """Choices that branch and bound looks at in the shortest turn of the proof."""

    def search(
        self, problem: SearchProblem, *, seconds: float, seed: int, rules: SimulationRules
    ) -> Iterator[SearchResult]:
        """See `Searcher.search`."""
        progress = Progress(self.name, problem, seconds, self.clock)
        tables = build_tables(problem, rules)
        plan, value = progress.evaluate(lambda: symmetric_plan(problem, tables))
        progress.offer(plan, value)
        yield progress.result()
        local = _LocalSearch(tables, distinct_options(problem), plan, seed)
        if local.improve(progress, self.slice_plans):
            yield progress.result()
        if progress.is_over:  # on a busy machine: the bound's tables take as long again
            yield progress.result()
            return
        proof = _Proof(problem, tables, rules, local.candidates)
        proof.report(progress)
        yield progress.result()
        walks = proof.neighbourhoods(local.state)
        choices = min(_WALK * self.slice_choices, _WALK_PER_OPTION * problem.num_options)
        shortest = 1 if choices == _WALK * self.slice_choices else _SMALL
        stalled = 0
        while not progress.is_over and proof.ties < _TIES:
            before = progress.seconds, progress.lower_bound
            longer = shortest * (1 + min(stalled // 2, _LONGEST_TURN // shortest - 1))
            proof.advance(progress, self.slice_choices * (1 if proof.ties else longer))
            if not proof.ties and not progress.is_over:
                if progress.seconds == before[0]:
                    local.narrow(proof, progress)
                if walks.is_idle:
                    self._dive(progress, proof, local, walks)
                shorter = (1 + stalled // 4) << min(walks.returns, _MOST_HALVINGS)
                walks.improve(progress, choices // shorter)
                local.improve(progress, self.slice_plans)
            stalled = stalled + 1 if progress.seconds == before[0] else 0
            if (progress.seconds, progress.lower_bound) != before:
                yield progress.result()
        yield progress.result()

    def _dive(
        self, progress: Progress, proof: "_Proof", local: "_LocalSearch", walks: Neighbourhoods
    ) -> None:
        """Look for plans to walk from."""
        for start in proof.promising(progress, local.state):
            walks.suggest(start, local.descend(progress, start), progress.seconds)
            if progress.is_over:
                return


class _LocalSearch:
    """Turns of kicks and two-call moves, over options that a better plan may have."""

    def __init__(self, tables: Tables, candidates: Candidates, fits: Ints, seed: int) -> None:
        self._tables = tables
        self.candidates = candidates
        self._fits = fits
        self.state = new_random_state(seed)
        self._turn = 0
        self._narrowed_at = np.inf
        self._current = fits.copy()
        self._walk = np.array([np.inf, 0.0])

    def improve(self, progress: Progress, plans: int) -> bool:
        """One turn; true where it found a better plan."""
        plan = np.array(progress.options)
        seconds = progress.evaluate(lambda: self._kick(plan, progress.seconds, plans))
        pair = self._next_pair()
        if pair is not None:
            seconds = progress.evaluate(lambda: self._move_pair(plan, seconds, pair, plans // 2))
        return progress.offer(plan, seconds)

    def descend(self, progress: Progress, plan: Ints) -> float:
        """From a given plan down, in place; its seconds then."""
        options, starts = self.candidates.options, self.candidates.starts
        value = evaluate(*self._tables, plan, np.inf)
        if np.isfinite(value):
            value = progress.evaluate(
                lambda: descend(*self._tables, options, starts, plan, value, 0)
            )
            progress.offer(plan, value)
        return value

    def _kick(self, plan: Ints, seconds: float, plans: int) -> tuple[float, int]:
        options, starts = self.candidates.options, self.candidates.starts
        return wander(
            *self._tables,
            options,
            starts,
            self._fits,
            plan,
            seconds,
            self._current,
            self._walk,
            plans,
            self.state,
        )

    def _move_pair(
        self, plan: Ints, seconds: float, pair: tuple[int, int], plans: int
    ) -> tuple[float, int]:
        options, starts = self.candidates.options, self.candidates.starts
        most = int(plans**0.5)
        return descend_pair(*self._tables, options, starts, plan, seconds, *pair, most, self.state)

    def narrow(self, proof: "_Proof", progress: Progress) -> None:
        """Leave out options that no better plan can have, each time that the best plan is."""
        if progress.seconds < self._narrowed_at:
            self._narrowed_at = progress.seconds
            kept = proof.may_improve(progress.seconds)
            kept[np.array(progress.options)] = True
            kept[self._fits] = True
            self.candidates = self.candidates.keep(kept)

    def _next_pair(self) -> tuple[int, int] | None:
        calls = self._tables.space.num_calls
        pairs = [(a, b) for a in range(calls) for b in range(a + 1, calls)]
        self._turn += 1
        return pairs[self._turn % len(pairs)] if pairs else None


class _Proof:
    """Branch and bound, told what others found."""

    def __init__(
        self, problem: SearchProblem, tables: Tables, rules: SimulationRules, known: Candidates
    ) -> None:
        self._problem = problem
        self._tables = tables
        self._bounds, self._tree = build_bounds(problem, known, rules, tables)
        self._search = BranchAndBound(tables, self._bounds, self._tree)
        self._place = 0
        self.ties = 0
        """Turns in which nothing could be left but plans as fast as the best, up to rounding."""

    def advance(self, progress: Progress, choices: int) -> None:
        """One turn."""
        stretch = self._search.advance(progress.seconds, choices)
        progress.evaluations += stretch.plans
        if self._search.best_seconds < progress.seconds:
            progress.offer(self._search.best, self._search.best_seconds)
        self.report(progress)
        self.ties += progress.lower_bound >= progress.seconds * (1.0 - 2.0 * MARGIN)

    def report(self, progress: Progress) -> None:
        """Prove what is proved by now."""
        progress.prove(self._search.lower_bound * (1.0 - MARGIN))

    def promising(self, progress: Progress, state: RandomState) -> Iterator[Ints]:
        """Plans where the bounds are small, or not much above the best plan's seconds."""
        gap = 1.0 - progress.lower_bound / progress.seconds
        for turn in range(math.ceil(_DIVES * min(1.0, gap / _WIDE_GAP))):
            limit, noise = progress.seconds * _SLACK, _NOISE * random_real(state)
            choice = self._probe(state) if turn % _PROBES else self._open_choice()
            plan = None if choice is None else self._search.dive(choice, limit, noise, state)
            if plan is not None:
                yield plan

    def _open_choice(self) -> Ints | None:
        self._place = (_STRIDE * self._place + 1) % _PLACES
        return self._search.choice_at(self._place)

    def _probe(self, state: RandomState) -> Ints | None:
        """All plans that have a random option of a random call."""
        call = random_below(state, self._problem.num_calls)
        sets = self._tree.single_sets(call)
        choice = self._tree.root.copy()
        choice[call] = sets[random_below(state, len(sets))]
        return choice

    def neighbourhoods(self, state: RandomState) -> Neighbourhoods:
        """The same bounds, around plans."""
        return Neighbourhoods(self._problem, self._tables, self._bounds, self._tree, state)

    def may_improve(self, seconds: float) -> NDArray[np.bool_]:
        """[O], see `realloc.search.narrowing`."""
        return may_improve(self._problem, self._bounds, self._tree, seconds)
