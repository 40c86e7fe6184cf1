"""Branch and bound: the least bound first, so that what is left proves more and more.

A *choice* is a set of options per call (see `realloc.search.option_tree`). The open choices
together contain every plan that may be better than the best one known, so the least of their
bounds is a lower bound. Each step takes the choice of the least bound and refines the call for
which that raises the bound of its children most; plans at the leaves are simulated.

Nothing is left out for being slower than an alternative, only for bounds on whole plans.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.search.bounds import choice_bound, weighted_bound
from realloc.search.compilation import compiled, inlined
from realloc.search.evaluator import MARGIN, evaluate
from realloc.search.option_tree import OptionTree
from realloc.search.relaxation import Bounds, Relaxation
from realloc.search.space import Space, Tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_OPEN = 1 << 20
"""Choices kept open at once; beyond it, they are refined depth first."""

_MOST_CUTS = 256
"""How deep a tree of options can be: four dimensions, halved until float64 ends."""

_TRIED = 3
"""Children of a call that are bounded to see what refining it is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a stretch of branch and bound did."""

    choices: int
    """Choices bounded."""
    plans: int
    """Plans simulated."""


class Pool(NamedTuple):
    """Open choices in slots; a heap of the slots by bound, and a stack of those in a hurry."""

    choice: NDArray[np.int32]
    """[slots, C]"""
    bound: Floats
    """[slots]"""
    free: Ints
    """[slots], free ones from `sizes[2]` on."""
    heap: Ints
    stack: Ints
    sizes: Ints
    """[3], in the heap, on the stack, in use."""


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
        self._pool = _empty_pool(most_open + depth_first, calls)
        self._order = np.argsort(-tree.area[tree.root], kind="stable").astype(np.int64)
        self._weights = np.zeros((2, tasks))
        self._proved = np.zeros(1)
        self.best = np.zeros(calls, dtype=np.int64)
        self.best_seconds = np.inf
        root = choice_bound(*bounds, tree.root, self._weights[0])
        _open(self._pool, tree.root, root, most_open)
        self._proved[0] = root

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

    def dive(self, best_seconds: float) -> tuple[Ints, int]:
        """A plan by always taking the child of the least bound, from the least bound open.

        Returns:
            Its options, −1 throughout where there is none better, and choices bounded.
        """
        counts = np.zeros(2, dtype=np.int64)
        plan = np.full(len(self.best), -1, dtype=np.int64)
        _dive(*self._bounds, self._pool, self._order, self._weights, plan, best_seconds, counts)
        return plan, int(counts[0])


def _empty_pool(slots: int, calls: int) -> Pool:
    return Pool(
        choice=np.zeros((slots, calls), dtype=np.int32),
        bound=np.zeros(slots),
        free=np.arange(slots),
        heap=np.zeros(slots, dtype=np.int64),
        stack=np.zeros(slots, dtype=np.int64),
        sizes=np.zeros(3, dtype=np.int64),
    )


@compiled
def _advance(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    s: Space,
    ints: Ints,
    reals: Floats,
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
    tried = np.empty((r.num_calls, _TRIED))
    while counts[0] < choices:
        if pool.sizes[0] + pool.sizes[1] == 0:
            proved[0] = np.inf
            break
        if pool.sizes[1] == 0:
            # What is on the stack came from the least bound; until it is done, that holds.
            proved[0] = max(proved[0], pool.bound[pool.heap[0]])
        limit = best_seconds * (1.0 + MARGIN)
        if _take(pool, choice) > limit:
            continue
        c = _call_to_refine(r, b_ints, b_reals, order, choice, weights, tried, limit, counts)
        if c == -2:
            continue
        if c == -1:
            for d in range(r.num_calls):
                plan[d] = b_ints[r.option + choice[d]]
            counts[1] += 1
            value = evaluate(s, ints, reals, plan, best_seconds)
            if value < best_seconds:
                best_seconds = value
                best[:] = plan
            continue
        parent = choice[c]
        count = b_ints[r.child_count + parent]
        for i in range(count):
            choice[c] = b_ints[r.child_start + parent] + i
            bound = _child_bound(r, b_ints, b_reals, choice, weights, limit, tried[c], i, count)
            counts[0] += 1
            if bound <= limit:
                _open(pool, choice, bound, most_open)
        choice[c] = parent
    return best_seconds


@compiled
def _dive(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    pool: Pool,
    order: Ints,
    weights: Floats,
    plan: Ints,
    best_seconds: float,
    counts: Ints,
) -> None:
    """Fill `plan` where the dive ends in one."""
    if pool.sizes[0] == 0:
        return
    choice = pool.choice[pool.heap[0]].astype(np.int64)
    tried = np.empty((r.num_calls, _TRIED))
    while True:
        c = _call_to_refine(r, b_ints, b_reals, order, choice, weights, tried, best_seconds, counts)
        if c == -2:
            return
        if c == -1:
            for d in range(r.num_calls):
                plan[d] = b_ints[r.option + choice[d]]
            return
        parent = choice[c]
        count = b_ints[r.child_count + parent]
        least = np.inf
        child = -1
        for i in range(count):
            choice[c] = b_ints[r.child_start + parent] + i
            bound = _child_bound(
                r, b_ints, b_reals, choice, weights, best_seconds, tried[c], i, count
            )
            if bound < least:
                least = bound
                child = choice[c]
        if child < 0:
            return
        choice[c] = child


@inlined
def _call_to_refine(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    order: Ints,
    choice: Ints,
    weights: Floats,
    tried: Floats,
    limit: float,
    counts: Ints,
) -> int:
    """The call whose refinement raises the bound most; −1 where each call has one option, −2
    where the choice cannot hold a plan below the limit.

    `tried` gets the bounds of the children that were tried, in the places of `_place_tried`;
    `weights[0]` those of the choice.
    """
    counts[0] += 1
    here = choice_bound(r, b_ints, b_reals, choice, weights[0])
    if here > limit:
        return -2
    best = -1
    most = -1.0
    for k in range(r.num_calls):
        c = order[k]
        parent = choice[c]
        count = b_ints[r.child_count + parent]
        if count == 0:
            continue
        least = np.inf
        total = 0.0
        for j in range(min(count, _TRIED)):
            choice[c] = b_ints[r.child_start + parent] + _place_tried(j, count)
            tried[c, j] = choice_bound(r, b_ints, b_reals, choice, weights[1])
            counts[0] += 1
            least = min(least, tried[c, j])
            total += min(tried[c, j], limit)
        choice[c] = parent
        if count <= _TRIED and least > limit:
            return -2
        score = min(least, limit) + 0.01 * total / min(count, _TRIED)
        if score > most * (1.0 + 1e-12):
            most = score
            best = c
    return best


@inlined
def _place_tried(j: int, count: int) -> int:
    """The first, the middle and the last child; all where there are no more."""
    if count <= _TRIED:
        return j
    return j * (count - 1) // (_TRIED - 1)


@inlined
def _child_bound(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    choice: Ints,
    weights: Floats,
    limit: float,
    tried: Floats,
    i: int,
    count: int,
) -> float:
    """The bound of the choice, which is child `i` of `count` of one that `weights[0]` is of."""
    for j in range(min(count, _TRIED)):
        if _place_tried(j, count) == i:
            return float(tried[j])
    quick = weighted_bound(r, b_ints, b_reals, choice, weights[0])
    if quick > limit:
        return quick
    return max(quick, choice_bound(r, b_ints, b_reals, choice, weights[1]))


@compiled
def _open(pool: Pool, choice: Ints, bound: float, most_open: int) -> None:
    """Keep a choice open: on the heap, or on the stack where the heap is full."""
    slot = pool.free[pool.sizes[2]]
    pool.sizes[2] += 1
    for c in range(len(choice)):
        pool.choice[slot, c] = choice[c]
    pool.bound[slot] = bound
    if pool.sizes[0] >= most_open:
        pool.stack[pool.sizes[1]] = slot
        pool.sizes[1] += 1
        return
    at = pool.sizes[0]
    pool.sizes[0] += 1
    while at > 0 and bound < pool.bound[pool.heap[(at - 1) // 2]]:
        pool.heap[at] = pool.heap[(at - 1) // 2]
        at = (at - 1) // 2
    pool.heap[at] = slot


@inlined
def _take(pool: Pool, choice: Ints) -> float:
    """Copy the choice on top of the stack, else that of the least bound, and close it.

    Returns:
        Its bound.
    """
    if pool.sizes[1] > 0:
        pool.sizes[1] -= 1
        slot = pool.stack[pool.sizes[1]]
    else:
        slot = pool.heap[0]
        pool.sizes[0] -= 1
        _sink(pool, pool.heap[pool.sizes[0]])
    pool.sizes[2] -= 1
    pool.free[pool.sizes[2]] = slot
    for c in range(len(choice)):
        choice[c] = pool.choice[slot, c]
    return float(pool.bound[slot])


@inlined
def _sink(pool: Pool, slot: int) -> None:
    """Put a slot where the heap's first one was."""
    size = pool.sizes[0]
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and (pool.bound[pool.heap[child + 1]] < pool.bound[pool.heap[child]]):
            child += 1
        if pool.bound[pool.heap[child]] >= pool.bound[slot]:
            break
        pool.heap[at] = pool.heap[child]
        at = child
    if size > 0:
        pool.heap[at] = slot
