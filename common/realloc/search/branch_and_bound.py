"""Branch and bound: the least bound first, so that what is left proves more and more.

A *choice* is a set of options per call (see `realloc.search.option_tree`). The open choices
together contain every plan that may be better than the best one known, so the least of their
bounds is a lower bound. Each step takes the choice of the least bound and refines the call of
which the bound's weights promise most; plans at the leaves are simulated.

Nothing is left out for being slower than an alternative, only for bounds on whole plans.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.search.bounds import choice_bound, weighted_bound
from realloc.search.compilation import compiled, inlined
from realloc.search.evaluator import MARGIN, evaluate
from realloc.search.facts import follows
from realloc.search.open_choices import Pool, empty_pool, open_choice, take_choice
from realloc.search.option_tree import OptionTree
from realloc.search.random_numbers import RandomState, random_real
from realloc.search.relaxation import Bounds, Relaxation
from realloc.search.space import Space, Tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_OPEN = 1 << 20
"""Choices kept open at once; beyond it, they are refined depth first."""

_MOST_CUTS = 256
"""How deep a tree of options can be: four dimensions, halved until float64 ends."""

_PLACE_SHARE = 0.2
"""Of a call's seconds, that knowing its place better is taken to be worth."""

_LEAST_WEIGHT = 1e-3
"""Of a call that the bound does not count at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a stretch of branch and bound did."""

    choices: int
    """Choices bounded."""
    plans: int
    """Plans simulated."""


class BranchAndBound:
    """The open choices, refined in resumable stretches."""

    def __init__(
        self, tables: Tables, bounds: Bounds, tree: OptionTree, most_open: int = MOST_OPEN
    ) -> None:
        self._tables = tables
        self._bounds = bounds
        self._most_open = most_open
        calls, tasks = tables.space.num_calls, bounds.relaxation.num_tasks
        depth_first = 2 * _MOST_CUTS * calls + int(tree.child_count[tree.root].sum())
        self._pool = empty_pool(most_open + depth_first, calls)
        self._order = np.argsort(-tree.area[tree.root], kind="stable").astype(np.int64)
        self._weights = np.zeros((2, tasks + 2))
        self._proved = np.zeros(1)
        self.best = np.zeros(calls, dtype=np.int64)
        self.best_seconds = np.inf
        self.restart(tree.root)

    def restart(self, choice: Ints) -> None:
        """Forget all open choices but one: from now on, nothing is said of other plans."""
        self._pool.free[:] = np.arange(len(self._pool.free))
        self._pool.sizes[:] = 0
        bound = choice_bound(*self._bounds, choice, self._weights[0], np.inf)
        open_choice(self._pool, choice, bound, self._most_open, 0)
        self._proved[0] = bound

    @property
    def lower_bound(self) -> float:
        """No plan but those seen takes fewer seconds, up to rounding; infinity at the end."""
        return float(self._proved[0])

    def advance(self, best_seconds: float, choices: int) -> Stretch:
        """Bound about `choices` more; a plan better than `best_seconds` goes to `best`."""
        counts = np.zeros(2, dtype=np.int64)
        self.best_seconds = _advance(
            *self._bounds,
            *self._tables,
            self._pool,
            self._order,
            self._weights,
            self._proved,
            self.best,
            best_seconds,
            counts,
            choices,
            self._most_open,
        )
        return Stretch(choices=int(counts[0]), plans=int(counts[1]))

    def choice_at(self, place: int) -> Ints | None:
        """An open choice, by its place in the heap, round and round; 0 is the least bound."""
        if self._pool.sizes[0] == 0:
            return None
        slot = self._pool.heap[place % int(self._pool.sizes[0])]
        found: Ints = self._pool.choice[slot].astype(np.int64)
        return found

    def dive(
        self, choice: Ints, best_seconds: float, noise: float, state: RandomState
    ) -> Ints | None:
        """A plan by always taking the child of about the least bound; None where none is better.

        Args:
            choice: where to begin; overwritten.
            noise: by what share at most a bound is taken to be larger than it is.
        """
        plan = np.full(len(self.best), -1, dtype=np.int64)
        _dive(*self._bounds, choice, self._order, self._weights, plan, best_seconds, noise, state)
        return plan if plan[0] >= 0 else None


@compiled
def _advance(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    b_moves: Floats,
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    pool: Pool,
    order: Ints,
    weights: Floats,
    proved: Floats,
    best: Ints,
    best_seconds: float,
    counts: Ints,
    choices: int,
    most_open: int,
) -> float:
    """Refine open choices; returns the seconds of the best plan known, old or new."""
    choice = np.empty(r.num_calls, dtype=np.int64)
    plan = np.empty(r.num_calls, dtype=np.int64)
    while counts[0] < choices:
        if pool.sizes[0] + pool.sizes[1] == 0:
            proved[0] = np.inf
            break
        if pool.sizes[1] == 0:
            # What is on the stack came from the least bound; until it is done, that holds.
            proved[0] = max(proved[0], pool.bound[pool.heap[0]])
        limit = best_seconds * (1.0 + MARGIN)
        counts[0] += 1
        if take_choice(pool, choice) > limit:
            continue
        if choice_bound(r, b_ints, b_reals, b_moves, choice, weights[0], limit) > limit:
            continue
        c = _call_to_refine(r, b_ints, b_reals, order, choice, weights[0])
        if c < 0:
            for d in range(r.num_calls):
                plan[d] = b_ints[r.option + choice[d]]
            counts[1] += 1
            value = evaluate(s, ints, reals, moves, plan, best_seconds)
            if value < best_seconds:
                best_seconds = value
                best[:] = plan
            continue
        begin, end = _children(r, b_ints, choice, c)
        below = pool.sizes[1]
        for at in range(begin, end):
            choice[c] = b_ints[at]
            counts[0] += 1
            bound = _child_bound(r, b_ints, b_reals, b_moves, choice, weights, limit)
            if bound <= limit:
                open_choice(pool, choice, bound, most_open, below)
    return best_seconds


@compiled
def _dive(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    b_moves: Floats,
    choice: Ints,
    order: Ints,
    weights: Floats,
    plan: Ints,
    best_seconds: float,
    noise: float,
    state: RandomState,
) -> None:
    """Fill `plan` where the dive from a choice ends in one."""
    while (
        choice_bound(r, b_ints, b_reals, b_moves, choice, weights[0], best_seconds) < best_seconds
    ):
        c = _call_to_refine(r, b_ints, b_reals, order, choice, weights[0])
        if c < 0:
            for d in range(r.num_calls):
                plan[d] = b_ints[r.option + choice[d]]
            return
        parent = choice[c]
        least = np.inf
        child = parent
        begin, end = _children(r, b_ints, choice, c)
        for at in range(begin, end):
            choice[c] = b_ints[at]
            bound = _child_bound(r, b_ints, b_reals, b_moves, choice, weights, best_seconds)
            if bound >= best_seconds:
                continue
            bound *= 1.0 + noise * random_real(state)
            if bound < least:
                least = bound
                child = choice[c]
        if child == parent:
            return
        choice[c] = child


@inlined
def _children(r: Relaxation, b_ints: Ints, choice: Ints, c: int) -> tuple[int, int]:
    """Where the sets that a call's set consists of stand in the integers of a relaxation.

    A call that follows has, once its train call is chosen, the options in that layout.
    """
    v = choice[c]
    if not follows(r, b_ints, choice, c):
        begin = r.sets + b_ints[r.child_start + v]
        return begin, begin + b_ints[r.child_count + v]
    layout = b_ints[r.layout + b_ints[r.option + choice[b_ints[r.train + c]]]]
    at = r.same_at + b_ints[r.same_start + c] + layout
    return r.same + b_ints[at], r.same + b_ints[at + 1]


@inlined
def _call_to_refine(
    r: Relaxation, b_ints: Ints, b_reals: Floats, order: Ints, choice: Ints, weights: Floats
) -> int:
    """The call whose refinement promises most; −1 where each has one option.

    First those whose mesh size is open, the largest first. Then by the choice's weights: what
    the slower half of the options adds, and a part of the call's own seconds where a cut by
    place may show that it must wait for others.
    """
    for k in range(r.num_calls):
        if choice[order[k]] == b_ints[r.root + order[k]]:
            return int(order[k])
    best = -1
    most = -1.0
    following = -1
    for k in range(r.num_calls):
        c = order[k]
        parent = choice[c]
        if follows(r, b_ints, choice, c):
            if b_ints[r.option + choice[b_ints[r.train + c]]] >= 0:
                following = int(c)
            continue
        count = b_ints[r.child_count + parent]
        if count == 0:
            continue
        first = b_ints[r.child_start + parent]
        last = first + count - 1
        seconds = b_reals[r.seconds + parent]
        slower = b_reals[r.seconds + last] - seconds
        score = (weights[c] + _LEAST_WEIGHT) * slower
        user = b_ints[r.user + c]
        if user >= 0 and follows(r, b_ints, choice, user):
            table = r.follow_seconds + b_ints[r.follow_start + user] - b_ints[r.root + c]
            slower = b_reals[table + last] - b_reals[table + first]
            score += (weights[user] + _LEAST_WEIGHT) * abs(slower)
        price = weights[r.num_tasks]
        if price > 0.0:
            spare = b_reals[r.trade_share + b_ints[r.trade_start + first + 1] - 1]
            spare -= b_reals[r.trade_share + b_ints[r.trade_start + last + 1] - 1]
            score += price * abs(spare)
        if (
            b_ints[r.hull_first + first] != b_ints[r.hull_first + last]
            or b_ints[r.hull_last + first] != b_ints[r.hull_last + last]
        ):
            score += _PLACE_SHARE * seconds
        if score > most:
            most = score
            best = c
    return best if best >= 0 else following


@inlined
def _child_bound(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    b_moves: Floats,
    choice: Ints,
    weights: Floats,
    limit: float,
) -> float:
    """The bound of a choice, which is a child of the one that `weights[0]` belongs to."""
    quick = weighted_bound(r, b_ints, b_reals, b_moves, choice, weights[0])
    if quick > limit:
        return quick
    return max(quick, choice_bound(r, b_ints, b_reals, b_moves, choice, weights[1], limit))
