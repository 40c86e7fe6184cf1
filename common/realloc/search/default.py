"""The default searcher: local search from above, branch and bound from below, in turns.

Both work in slices counted in plans and choices, not in seconds, so that a seed gives the same
sequence of plans on every machine; the clock only says after which slice to stop.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.bounds import choice_bound
from realloc.search.branch_and_bound import BoundPass
from realloc.search.candidates import Candidates, distinct_options
from realloc.search.evaluator import MARGIN
from realloc.search.heuristic import symmetric_plan
from realloc.search.local_search import descend_pair, wander
from realloc.search.option_tree import LEVELS, OptionTree
from realloc.search.problem import SearchProblem
from realloc.search.random_numbers import new_random_state
from realloc.search.relaxation import Bounds, build_bounds
from realloc.search.result import Clock, Progress, SearchResult
from realloc.search.space import Tables, build_tables

Ints = NDArray[np.int64]

FIRST_STEP = 0.03
"""Of the best plan's seconds, by which a pass's target exceeds what is proved."""

SMALLEST_STEP = 0.002

FIRST_PATIENCE = 200_000
"""Choices after which a pass gives way to one with half the step; doubled each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultSearcher:
    """Iterated local search with one- and two-call moves, and passes that prove a bound."""

    name: str = "default"
    clock: Clock = time.perf_counter
    slice_plans: int = 60_000
    """Plans that local search decides in one turn."""
    slice_choices: int = 60_000
    """Choices that branch and bound looks at in one turn."""

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
        bounds, tree = build_bounds(problem, local.candidates, rules)
        proof = _Proof(tables, bounds, tree, progress)
        if progress.prove(proof.lower_bound):
            yield progress.result()
        while not progress.is_over:
            before = progress.seconds, progress.lower_bound
            proof.advance(progress, self.slice_choices)
            if not progress.is_over:
                local.narrow(proof, progress)
                local.improve(progress, self.slice_plans)
            if (progress.seconds, progress.lower_bound) != before:
                yield progress.result()
        yield progress.result()


class _LocalSearch:
    """Turns of kicks and two-call moves, over options that a better plan may have."""

    def __init__(self, tables: Tables, candidates: Candidates, fits: Ints, seed: int) -> None:
        self._tables = tables
        self.candidates = candidates
        self._fits = fits
        self._state = new_random_state(seed)
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
            self._state,
        )

    def _move_pair(
        self, plan: Ints, seconds: float, pair: tuple[int, int], plans: int
    ) -> tuple[float, int]:
        options, starts = self.candidates.options, self.candidates.starts
        most = int(plans**0.5)
        return descend_pair(*self._tables, options, starts, plan, seconds, *pair, most, self._state)

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
    """Passes with rising targets; a pass's cost grows fast with its target."""

    def __init__(
        self, tables: Tables, bounds: Bounds, tree: OptionTree, progress: Progress
    ) -> None:
        self._tables = tables
        self._bounds = bounds
        self._tree = tree
        weights = np.zeros(bounds.relaxation.num_tasks)
        self.lower_bound = choice_bound(*bounds, tree.root, weights) * (1.0 - MARGIN)
        self._step = FIRST_STEP
        self._patience = FIRST_PATIENCE
        self._begin(progress.seconds)

    def advance(self, progress: Progress, choices: int) -> None:
        """One turn: bound some choices; a pass that ends proves its target."""
        while choices > 0 and not progress.is_proven:
            step = self._pass.advance(progress.seconds, choices)
            choices -= max(1, step.nodes)
            self._nodes += step.nodes
            progress.evaluations += step.decided
            progress.offer(self._pass.best, self._pass.best_seconds)
            if step.ended:
                self.lower_bound = max(self.lower_bound, min(self._pass.target, progress.seconds))
                progress.prove(self.lower_bound)
                self._begin(progress.seconds)
            elif self._nodes > self._patience:
                self._give_way(progress.seconds)

    def _begin(self, seconds: float) -> None:
        self._nodes = 0
        target = self._target(seconds)
        self._pass = BoundPass(self._tables, self._bounds, self._tree, target)

    def _give_way(self, seconds: float) -> None:
        """Aim lower, so that something is proved in time; later passes come back."""
        self._patience *= 2
        self._step = max(SMALLEST_STEP, self._step / 2)
        if self._target(seconds) < self._pass.target:
            self._begin(seconds)

    def _target(self, seconds: float) -> float:
        target = self.lower_bound + self._step * seconds
        return seconds if target > (1.0 - self._step / 2) * seconds else target

    def may_improve(self, seconds: float) -> NDArray[np.bool_]:
        """[O], whether a plan with the option, by its own bound, could be faster."""
        tree = self._tree
        kept = np.ones(int(tree.option.max()) + 1, dtype=bool)
        weights = np.zeros(self._bounds.relaxation.num_tasks)
        for call, root in enumerate(tree.root):
            choice = tree.root.copy()
            for node in _descendants(tree, int(root), LEVELS - 1):
                choice[call] = node
                if choice_bound(*self._bounds, choice, weights) > seconds * (1.0 + MARGIN):
                    start = int(tree.child_start[node])
                    kept[tree.option[start : start + int(tree.child_count[node])]] = False
        return kept


def _descendants(tree: OptionTree, node: int, depth: int) -> list[int]:
    """The sets `depth` refinements below a set."""
    nodes = [node]
    for _ in range(depth):
        nodes = [
            child
            for node in nodes
            for child in range(
                int(tree.child_start[node]), int(tree.child_start[node] + tree.child_count[node])
            )
        ]
    return nodes
