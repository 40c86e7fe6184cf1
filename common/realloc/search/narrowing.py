"""Options that no plan below some seconds can have, by their own bound alone."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.bounds import choice_bound
from realloc.search.compilation import compiled
from realloc.search.evaluator import MARGIN
from realloc.search.option_tree import OptionTree
from realloc.search.relaxation import Bounds, Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_SETS = 60_000
"""Sets bounded at once; what is not looked at stays."""


def may_improve(
    bounds: Bounds, tree: OptionTree, num_options: int, seconds: float
) -> NDArray[np.bool_]:
    """[O], whether a plan with the option could take fewer seconds, as far as is known."""
    kept = np.ones(num_options, dtype=np.bool_)
    weights = np.zeros(bounds.relaxation.num_tasks)
    limit = seconds * (1.0 + MARGIN)
    stack = np.zeros(len(tree.option), dtype=np.int64)
    _drop(*bounds, tree.root, weights, limit, stack, kept, _MOST_SETS)
    return kept


@compiled
def _drop(
    r: Relaxation,
    ints: Ints,
    reals: Floats,
    root: Ints,
    weights: Floats,
    limit: float,
    stack: Ints,
    kept: NDArray[np.bool_],
    most: int,
) -> None:
    """From the largest sets down, leave out those that exceed the limit with all other calls."""
    choice = root.copy()
    for c in range(r.num_calls):
        begin = 0
        end = 1
        stack[0] = root[c]
        bounded = 0
        while begin < end and bounded < most // r.num_calls:
            node = stack[begin]
            begin += 1
            bounded += 1
            choice[c] = node
            if choice_bound(r, ints, reals, choice, weights) > limit:
                _drop_all(r, ints, node, stack, end, kept)
                continue
            for i in range(ints[r.child_count + node]):
                stack[end] = ints[r.child_start + node] + i
                end += 1
        choice[c] = root[c]


@compiled
def _drop_all(
    r: Relaxation, ints: Ints, node: int, stack: Ints, end: int, kept: NDArray[np.bool_]
) -> None:
    """Leave out every option of a set; the stack is free from `end` on."""
    stack[end] = node
    top = end + 1
    while top > end:
        top -= 1
        at = stack[top]
        if ints[r.option + at] >= 0:
            kept[ints[r.option + at]] = False
        for i in range(ints[r.child_count + at]):
            stack[top] = ints[r.child_start + at] + i
            top += 1
