"""Options that no plan below some seconds can have, by their own bound alone."""

import numpy as np
from numpy.typing import NDArray

from realloc.search.bounds import choice_bound
from realloc.search.compilation import compiled
from realloc.search.evaluator import MARGIN
from realloc.search.option_tree import OptionTree
from realloc.search.problem import SearchProblem
from realloc.search.relaxation import Bounds, Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MOST_SETS = 20_000
"""Sets bounded at once; what is not looked at stays."""


def may_improve(
    problem: SearchProblem, bounds: Bounds, tree: OptionTree, seconds: float
) -> NDArray[np.bool_]:
    """[O], whether a plan with the option could take fewer seconds, as far as is known."""
    limit = seconds * (1.0 + MARGIN)
    kept = np.zeros(problem.num_options, dtype=np.bool_)
    most = _MOST_SETS // (problem.num_calls + int((tree.follow >= 0).sum()))
    for call in range(problem.num_calls):
        found = np.zeros(problem.num_options, dtype=np.bool_)
        _keep(*bounds, tree.root, call, limit, found, most)
        kept |= found
        if tree.follow[call] >= 0:
            # In the layout of some option of the train call, with which following may pay off.
            train, choice = problem.train_call(call), tree.root.copy()
            choice[call] = tree.follow[call]
            found[:] = False
            _keep(*bounds, choice, train, limit, found, most)
            options = problem.options_of(call)
            layouts = problem.option_layout[found]
            kept[options] |= np.isin(problem.option_layout[options], layouts[layouts >= 0])
    return kept


@compiled
def _keep(
    r: Relaxation,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    others: Ints,
    call: int,
    limit: float,
    kept: NDArray[np.bool_],
    most: int,
) -> None:
    """Mark the options of a call that do not exceed the limit with the sets of the others.

    From the largest sets down; what lies in sets that are not looked at is kept.
    """
    weights = np.zeros(r.num_tasks + 2)
    choice = others.copy()
    stack = np.zeros(len(ints), dtype=np.int64)
    stack[0] = choice[call]
    begin = 0
    end = 1
    while begin < end:
        node = stack[begin]
        begin += 1
        choice[call] = node
        if begin <= most and choice_bound(r, ints, reals, moves, choice, weights, limit) > limit:
            continue
        if ints[r.option + node] >= 0:
            kept[ints[r.option + node]] = True
        for i in range(ints[r.child_count + node]):
            stack[end] = ints[r.child_start + node] + i
            end += 1
