"""Lower bounds on the seconds of all plans that choose from given sets of options.

Where the graph has windows (`realloc.search.windows`), a window's work is relaxed: its tasks
(the calls, and one reallocation per trained model) may be cut into pieces, which run together
wherever precedence does not order the tasks and their devices suffice. One rule of the
simulator is kept: train calls come first, so other work that must meet one on a device is
behind it. The shortest such schedule is a linear program over sets of tasks that may run
together; its dual gives each task a weight, such that no set weighs more than 1, and
Σ weight × seconds is the bound. It is at least the longest path, the work of any device, and
the area (devices × seconds) over all devices. Weights stay valid when sets of options shrink,
because fewer tasks fit together then: a parent's weights bound its children for next to
nothing. And whatever the solver returns is scaled until no set weighs more than 1, so its
rounding errors cannot make a bound too high.

Memory bounds, too. Choices whose calls cannot stand on the devices have no plan
(`realloc.search.overflow`, `realloc.search.packing`); what others must give up to fit all devices
together has a price (`realloc.search.memory_price`).

Elsewhere (staleness, calls that wait for nothing, ...) the whole simulation is relaxed. Its
first iteration ends with some call x without successors, so all that waits for x's first run
comes after end_1: the longest path from there to the end, and the shortest way to do all that
work by sets of calls whose devices suffice, bound (end_K − end_1). The smallest of these over
all such x holds in any case.

A call that is not at its root either follows its train call, or is in another layout
(`realloc.search.option_tree`): plans that share the layout are in the choice that follows.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.clashes import fill_clashes, fill_seconds
from realloc.search.compilation import bare, compiled, inlined
from realloc.search.facts import fill_facts
from realloc.search.linear_program import fitting_sets, weigh
from realloc.search.memory_price import counted_calls, priced_bound, settle_price, trades_with
from realloc.search.overflow import fill_mates, overflows, overflows_where_known
from realloc.search.packing import packs_too_much
from realloc.search.relaxation import Relaxation
from realloc.search.unrolled import unrolled_bound

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@compiled
def choice_bound(
    r: Relaxation,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    choice: Ints,
    weights: Floats,
    limit: float,
) -> float:
    """No plan that chooses from the sets of `choice` takes fewer seconds (up to rounding).

    Args:
        choice: [C], a set of the option tree per call.
        weights: [T + 2], filled with the tasks' weights, the price of memory, and the bit set
            of the calls that pay it, for `weighted_bound`; without windows only weights of the
            calls, that say which to refine.
        limit: a bound above it may as well be lower.
    """
    weights[:] = 0.0
    trial = bare(reals[r.trial : r.trial + r.num_tasks + 2])
    ints, reals, moves = bare(ints), bare(reals), bare(moves)
    choice, weights = bare(choice), bare(weights)
    fill_facts(r, ints, reals, choice)
    fill_mates(r, ints, choice)
    if overflows(r, ints) or overflows_where_known(r, ints) or packs_too_much(r, ints, reals):
        return np.inf
    if not fill_seconds(r, ints, reals, moves, choice):
        return np.inf
    fill_clashes(r, ints, reals, choice)
    if not r.has_windows:
        return unrolled_bound(r, ints, reals, moves, choice, weights)
    fitting = fitting_sets(r, ints, reals)
    weigh(r, ints, reals, fitting, weights)
    return _price_memory(r, ints, reals, choice, fitting, weights, trial, limit)


@inlined
def _price_memory(
    r: Relaxation,
    ints: Ints,
    reals: Floats,
    choice: Ints,
    fitting: int,
    weights: Floats,
    trial: Floats,
    limit: float,
) -> float:
    """The bound with memory, and the weights and the price that give it.

    The price under the weights so far; then, for the seconds of the calls where they just fit,
    new weights and a new price.
    """
    counted = counted_calls(r, ints, choice)
    weights[r.num_tasks + 1] = float(counted)
    best = settle_price(r, ints, reals, choice, counted, weights)
    trades = weights[r.num_tasks] > 0.0
    for c in range(r.num_calls):
        trades |= trades_with(r, ints, choice, c, weights) >= 0
    if not trades or best > limit:
        return best
    for c in range(r.num_calls):
        if reals[r.task_seconds + c] > 0.0:
            reals[r.task_seconds + c] = reals[r.mixed + c]
    if weigh(r, ints, reals, fitting, trial) > best:
        bound = settle_price(r, ints, reals, choice, counted, trial)
        if bound > best:
            best = bound
            trial[r.num_tasks + 1] = float(counted)
            for t in range(r.num_tasks + 2):
                weights[t] = trial[t]
    return best


@compiled
def weighted_bound(
    r: Relaxation, ints: Ints, reals: Floats, moves: Floats, choice: Ints, weights: Floats
) -> float:
    """The bound by the weights of a choice that contains this one; cheaper and weaker.

    0 where the graph has no windows: weights are of one of several cases there.
    """
    if not r.has_windows:
        return 0.0
    ints, reals, moves = bare(ints), bare(reals), bare(moves)
    choice, weights = bare(choice), bare(weights)
    if not fill_seconds(r, ints, reals, moves, choice):
        return np.inf
    return priced_bound(r, ints, reals, choice, weights)
