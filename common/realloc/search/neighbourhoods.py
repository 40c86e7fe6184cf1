"""Large-neighbourhood search: some calls are open, all others stay where they are.

Branch and bound, mostly depth first, finds the best plan of such a neighbourhood, or that there
is none better, in some thousand choices. Moves of one or two calls do not lead out of plans in
which two models must change places, or all inferences must stand side by side instead of one
behind the other; opening all calls of some models, or of one kind, does. (Shaw, "Using constraint
programming and local search methods to solve vehicle routing problems", CP 1998.)

A *walk* goes from plan to better plan until no neighbourhood has a better one. Further walks
start from plans that others suggest.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from realloc.search.branch_and_bound import BranchAndBound
from realloc.search.option_tree import OptionTree
from realloc.search.problem import SearchProblem
from realloc.search.random_numbers import RandomState, random_below
from realloc.search.relaxation import Bounds
from realloc.search.result import Progress
from realloc.search.space import Tables

Ints = NDArray[np.int64]

_MOST_CHOICES = 2_000
"""Looked at in one neighbourhood; most are searched to the end with fewer."""

_MOST_OPEN = 16
"""Choices from which dives begin, as it were: all others are refined depth first."""

_FIXED_CHOICES = 20
"""What a neighbourhood costs at least, in choices."""

_GAIN = 2e-4
"""By what share a plan must be better for a walk to go there: the end of a walk is near then."""

_NEAR = 1.005
"""How far from the best plan a walk may end that is worth the wide neighbourhoods."""

_FAR = 1.05
"""How far from the best plan a walk may start."""

_WALKED = 0.01
"""By what share a plan that puts the largest call where an earlier walk started counts as slower,
for each such walk: so that walks start from unlike plans."""


class Neighbourhoods:
    """Walks, resumable."""

    def __init__(
        self,
        problem: SearchProblem,
        tables: Tables,
        bounds: Bounds,
        tree: OptionTree,
        state: RandomState,
    ) -> None:
        self._problem = problem
        self._tree = tree
        self._state = state
        self._train = [problem.train_call(call) for call in range(problem.num_calls)]
        self._search = BranchAndBound(tables, bounds, tree, most_open=_MOST_OPEN)
        self._set_of = _set_of(problem, tree)
        self._groups = _narrow_groups(problem), _wide_groups(problem)
        self._left: list[tuple[int, ...]] = []
        """Groups of calls that are still to be opened around the plan."""
        self._is_wide = True
        self._plan = np.zeros(0, dtype=np.int64)
        self._seconds = np.inf
        self._seen: set[float] = set()
        self._starts: dict[int, tuple[float, Ints]] = {}
        """The best suggestion of each kind; its seconds and the plan."""
        self._walks: dict[int, int] = {}
        self._largest = int(np.argmax(tree.area[tree.root]))
        self.returns = 0
        """Walks since the last better plan that came to one where a walk had been."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to walk from."""
        return not self._left and not self._starts and self._is_wide

    def suggest(self, plan: Ints, seconds: float, best: float) -> None:
        """A plan from which to walk when the present walk ends."""
        kind = self._kind(plan)
        known = self._starts[kind][0] if kind in self._starts else best * _FAR
        if seconds < known and seconds not in self._seen:
            self._starts[kind] = seconds, plan.copy()

    def improve(self, progress: Progress, choices: int) -> None:
        """One turn of about so many choices."""
        if progress.seconds not in self._seen:
            self.returns = 0
            self._walk_from(np.array(progress.options), progress.seconds)
        while choices > 0 and not progress.is_over:
            if not self._left and not self._next_walk(progress.seconds):
                return
            choices -= self._open(self._left.pop())
            if progress.offer(self._plan, self._seconds):
                self.returns = 0

    def _open(self, calls: tuple[int, ...]) -> int:
        """Go to the best plan around, if there is a better one; returns what it took."""
        search, limit = self._search, self._seconds * (1.0 - _GAIN)
        search.restart(self._around(calls))
        stretch = search.advance(limit, _MOST_CHOICES)
        if search.best_seconds < limit and search.best_seconds in self._seen:
            self.returns += 1
            self._left, self._is_wide = [], True
        elif search.best_seconds < limit:
            self._walk_from(search.best, search.best_seconds)
        return stretch.choices + _FIXED_CHOICES

    def _next_walk(self, best: float) -> bool:
        """Wider neighbourhoods of a good plan, else another plan; false where there is none."""
        if not self._is_wide and self._seconds <= best * _NEAR:
            self._begin(is_wide=True)
        elif self._starts:
            kind = min(self._starts, key=self._rank)
            seconds, plan = self._starts.pop(kind)
            self._walks[kind] = self._walks.get(kind, 0) + 1
            self._walk_from(plan, seconds)
        return bool(self._left)

    def _rank(self, kind: int) -> float:
        return self._starts[kind][0] * (1.0 + _WALKED * self._walks.get(kind, 0))

    def _kind(self, plan: Ints) -> int:
        """Where a plan has the call that takes most."""
        return int(self._problem.option_layout[plan[self._largest]])

    def _walk_from(self, plan: Ints, seconds: float) -> None:
        self._plan, self._seconds = plan.copy(), seconds
        self._seen.add(seconds)
        self._begin(is_wide=False)

    def _begin(self, *, is_wide: bool) -> None:
        self._is_wide = is_wide
        self._left = list(self._groups[is_wide])
        for last in range(len(self._left) - 1, 0, -1):
            other = random_below(self._state, last + 1)
            self._left[last], self._left[other] = self._left[other], self._left[last]

    def _around(self, calls: tuple[int, ...]) -> Ints:
        """The choice of all plans that differ from the present one in these calls."""
        choice: Ints = self._set_of[self._plan]
        layout = self._problem.option_layout[self._plan]
        for call, train in enumerate(self._train):
            if call in calls:
                choice[call] = self._tree.root[call]
            elif self._tree.follow[call] >= 0 and layout[call] == layout[train] >= 0:
                choice[call] = self._tree.follow[call]
        return choice


def _narrow_groups(problem: SearchProblem) -> list[tuple[int, ...]]:
    """The calls of any two models; of any one kind."""
    models = [_join(*two) for two in itertools.combinations(_calls_of_models(problem), 2)]
    return models + [_join(kind) for kind in _calls_of_kinds(problem)]


def _wide_groups(problem: SearchProblem) -> list[tuple[int, ...]]:
    """The calls of any three models; of one kind and of one model."""
    models, kinds = _calls_of_models(problem), _calls_of_kinds(problem)
    found = [_join(*three) for three in itertools.combinations(models, 3)]
    return found + [_join(kind, model) for kind in kinds for model in models]


def _calls_of_kinds(problem: SearchProblem) -> list[Ints]:
    """Of kinds that many calls have."""
    kinds = [np.flatnonzero(problem.call_kind == kind) for kind in np.unique(problem.call_kind)]
    return [calls for calls in kinds if len(calls) > 2]


def _calls_of_models(problem: SearchProblem) -> list[Ints]:
    return [np.flatnonzero(problem.call_model == model) for model in np.unique(problem.call_model)]


def _join(*groups: Ints) -> tuple[int, ...]:
    return tuple(int(call) for call in np.unique(np.concatenate(groups)))


def _set_of(problem: SearchProblem, tree: OptionTree) -> Ints:
    """[O], the set of each single option; of those that the tree leaves out, their call's root."""
    found = tree.root[problem.option_call]
    single = np.flatnonzero(tree.option >= 0)
    found[tree.option[single]] = single
    return found
