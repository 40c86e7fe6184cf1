"""Branch and bound over sets of options: proves how good a plan can be.

One *pass* has a target. It walks depth first through choices of option sets, leaves out every
choice whose bound reaches the target, and simulates the plans at the leaves. A pass that ends
has seen every plan that could be faster than its target, so the target (or the best plan, if
that is faster) is a lower bound. Passes with rising targets end in the best plan's own
seconds: then it is optimal.

Nothing is left out for being slower than an alternative, only for bounds on whole plans.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.search.bounds import choice_bound, weighted_bound
from realloc.search.compilation import compiled, inlined
from realloc.search.evaluator import MARGIN, evaluate
from realloc.search.option_tree import LEVELS, OptionTree
from realloc.search.relaxation import Bounds, Relaxation
from realloc.search.space import Space, Tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStep:
    """What a stretch of a pass did."""

    nodes: int
    """Choices bounded."""
    decided: int
    """Plans simulated."""
    ended: bool


class BoundPass:
    """One pass, in resumable stretches."""

    def __init__(self, tables: Tables, bounds: Bounds, tree: OptionTree, target: float) -> None:
        self._tables = tables
        self._bounds = bounds
        calls = tables.space.num_calls
        tasks = bounds.relaxation.num_tasks
        depths = LEVELS * calls
        order = np.argsort(-tree.area[tree.root], kind="stable")
        # All mesh sizes first: they decide most. Then call by call down to one option, so that
        # what the large calls cost exactly is known before the small ones are enumerated.
        self._branch = np.concatenate([order, np.repeat(order, LEVELS - 1)]).astype(np.int64)
        self._choice = np.repeat(tree.root[None, :], depths + 1, axis=0).astype(np.int64)
        self._child = np.full(depths + 1, -1, dtype=np.int64)
        self._weights = np.zeros((depths + 1, tasks))
        self._limits = np.array([target, np.inf])  # target, best seconds
        self._state = np.zeros(1, dtype=np.int64)  # depth
        choice_bound(*bounds, self._choice[0], self._weights[0])
        self.target = target
        self.best = np.zeros(calls, dtype=np.int64)

    def advance(self, best_seconds: float, nodes: int) -> PassStep:
        """Bound up to `nodes` more choices; better plans than `best_seconds` go to `best`."""
        self._limits[1] = best_seconds
        counts = np.zeros(2, dtype=np.int64)
        ended = _advance(
            self._bounds.relaxation,
            self._bounds.ints,
            self._bounds.reals,
            self._tables.space,
            self._tables.ints,
            self._tables.reals,
            self._branch,
            self._choice,
            self._child,
            self._weights,
            self._limits,
            self._state,
            self.best,
            counts,
            nodes,
        )
        return PassStep(nodes=int(counts[0]), decided=int(counts[1]), ended=bool(ended))

    @property
    def best_seconds(self) -> float:
        """Seconds of `best` where it was overwritten, else those last given to `advance`."""
        return float(self._limits[1])


@compiled
def _advance(
    r: Relaxation,
    b_ints: Ints,
    b_reals: Floats,
    s: Space,
    ints: Ints,
    reals: Floats,
    branch: Ints,
    choice: Ints,
    child: Ints,
    weights: Floats,
    limits: Floats,
    state: Ints,
    best: Ints,
    counts: Ints,
    nodes: int,
) -> bool:
    """Depth-first search; `child[d]` is the child under way at depth d, −1 before the first."""
    depths = len(branch)
    depth = state[0]
    plan = np.empty(r.num_calls, dtype=np.int64)
    while depth >= 0:
        if counts[0] >= nodes:
            state[0] = depth
            return False
        c = branch[depth]
        parent = choice[depth, c]
        child[depth] += 1
        if child[depth] == b_ints[r.child_count + parent]:
            child[depth] = -1
            depth -= 1
            continue
        counts[0] += 1
        choice[depth + 1] = choice[depth]
        choice[depth + 1, c] = b_ints[r.child_start + parent] + child[depth]
        limit = min(limits[0], limits[1]) * (1.0 + MARGIN)
        single = b_ints[r.option + choice[depth + 1, c]] >= 0
        if single and not _placed_fit(r, b_ints, s, ints, choice[depth + 1]):
            continue
        if depth + 1 == depths:
            for d in range(r.num_calls):
                plan[d] = b_ints[r.option + choice[depth + 1, d]]
            counts[1] += 1
            value = evaluate(s, ints, reals, plan, limits[1])
            if value < limits[1]:
                limits[1] = value
                best[:] = plan
            continue
        quick = weighted_bound(r, b_ints, b_reals, choice[depth + 1], weights[depth])
        if quick > limit:
            continue
        if b_ints[r.child_count + parent] == 1 and not single:
            # The set is as large as its parent: nothing new to bound.
            weights[depth + 1] = weights[depth]
        elif choice_bound(r, b_ints, b_reals, choice[depth + 1], weights[depth + 1]) > limit:
            continue
        depth += 1
    state[0] = depth
    return True


@inlined
def _placed_fit(r: Relaxation, b_ints: Ints, s: Space, ints: Ints, choice: Ints) -> bool:
    """Whether the calls with a single option fit the memory; more calls only add to it."""
    for c in range(r.num_calls):
        o = b_ints[r.option + choice[c]]
        if o < 0:
            continue
        device = ints[s.first + o]
        total = 0
        active = 0
        for d in range(r.num_calls):
            p = b_ints[r.option + choice[d]]
            if p < 0 or not ints[s.first + p] <= device < ints[s.last + p]:
                continue
            kept = ints[s.resident + p]
            layout = ints[s.layout + p]
            if layout >= 0:
                for e in range(r.num_calls):
                    q = b_ints[r.option + choice[e]]
                    if e != d and q >= 0 and ints[s.model + e] == ints[s.model + d]:
                        other = ints[s.resident + q]
                        more = other > kept or (other == kept and e < d)
                        if ints[s.layout + q] == layout and more:
                            kept = 0
                            break
            total += kept
            active = max(active, ints[s.active + p])
        if total + active > s.device_memory_bytes:
            return False
    return True
