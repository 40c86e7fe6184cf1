"""Moves from a plan to a better one, compiled: one call, two calls, and kicks out of a hollow.

All work on a plan in place, and all decide with the exact simulator.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled
from realloc.search.evaluator import evaluate, plan_peak_bytes
from realloc.search.random_numbers import RandomState, random_below, random_real
from realloc.search.space import Space

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SLACK = 1.01
"""How much slower than the current plan a kicked one may be to take its place."""

PATIENCE = 5
"""Kicks per call that may fail before a new start."""


@compiled
def descend(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    options: Ints,
    starts: Ints,
    plan: Ints,
    value: float,
    first_call: int,
) -> tuple[float, int]:
    """Give call after call the option that is best with the others as they are, to a fixpoint.

    Args:
        value: seconds of `plan`, infinity where it does not fit.
        first_call: the call to begin with.

    Returns:
        The seconds of the plan and how many plans were decided.
    """
    decided = 0
    unchanged = 0
    c = first_call
    while unchanged < s.num_calls:
        kept = plan[c]
        best = kept
        for i in range(starts[c], starts[c + 1]):
            if options[i] == kept:
                continue
            plan[c] = options[i]
            here = evaluate(s, ints, reals, moves, plan, value)
            if here < value:
                value = here
                best = options[i]
        decided += starts[c + 1] - starts[c] - 1
        plan[c] = best
        unchanged = unchanged + 1 if best == kept else 1
        c = (c + 1) % s.num_calls
    return value, decided


@compiled
def descend_pair(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    options: Ints,
    starts: Ints,
    plan: Ints,
    value: float,
    one: int,
    two: int,
    most: int,
    state: RandomState,
) -> tuple[float, int]:
    """Move two calls at once to their best pair of options; at most `most` options of each.

    Where a call has more, a random run of consecutive ones is tried.
    """
    size_one = min(most, starts[one + 1] - starts[one])
    size_two = min(most, starts[two + 1] - starts[two])
    from_one = random_below(state, starts[one + 1] - starts[one])
    from_two = random_below(state, starts[two + 1] - starts[two])
    best_one = plan[one]
    best_two = plan[two]
    for i in range(size_one):
        plan[one] = options[starts[one] + (from_one + i) % (starts[one + 1] - starts[one])]
        for j in range(size_two):
            plan[two] = options[starts[two] + (from_two + j) % (starts[two + 1] - starts[two])]
            here = evaluate(s, ints, reals, moves, plan, value)
            if here < value:
                value = here
                best_one = plan[one]
                best_two = plan[two]
    plan[one] = best_one
    plan[two] = best_two
    return value, size_one * size_two


@compiled
def shed_memory(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    options: Ints,
    starts: Ints,
    plan: Ints,
    first_call: int,
) -> bool:
    """Make a plan fit: by the one move that leaves it fastest, else by lowering the peak first.

    Returns:
        False where no single move lowers the peak any further and the plan does not fit.
    """
    peak = plan_peak_bytes(s, ints, reals, moves, plan)
    c = first_call
    unchanged = 0
    while peak > s.device_memory_bytes and unchanged < s.num_calls:
        value = np.inf
        best_call = -1
        best = -1
        for d in range(s.num_calls):
            kept = plan[d]
            for i in range(starts[d], starts[d + 1]):
                plan[d] = options[i]
                here = evaluate(s, ints, reals, moves, plan, value)
                if here < value:
                    value = here
                    best_call = d
                    best = options[i]
            plan[d] = kept
        if best_call >= 0:
            plan[best_call] = best
            return True
        best = plan[c]
        kept = best
        for i in range(starts[c], starts[c + 1]):
            plan[c] = options[i]
            lower = plan_peak_bytes(s, ints, reals, moves, plan)
            if lower < peak:
                peak = lower
                best = options[i]
        plan[c] = best
        unchanged = 0 if best != kept else unchanged + 1
        c = (c + 1) % s.num_calls
    return peak <= s.device_memory_bytes


@compiled
def wander(
    s: Space,
    ints: Ints,
    reals: Floats,
    moves: Floats,
    options: Ints,
    starts: Ints,
    fits: Ints,
    best: Ints,
    best_value: float,
    current: Ints,
    walk: Floats,
    budget: int,
    state: RandomState,
) -> tuple[float, int]:
    """Iterated local search: kick a few calls, descend, keep what is not much worse.

    Args:
        fits: a plan that fits the memory, to fall back on.
        best: the best plan; overwritten by better ones.
        current: the plan to kick next; this and `walk` carry over from turn to turn.
        walk: seconds of `current`, and kicks since the last that helped.
        budget: plans to decide, about.

    Returns:
        The best plan's seconds, and how many plans were decided.
    """
    plan = best.copy()
    decided = 0
    while decided < budget:
        if walk[1] > PATIENCE * s.num_calls:
            # A new start: anywhere, or from the best plan.
            walk[1] = 0.0
            if random_real(state) < 0.7:
                for c in range(s.num_calls):
                    plan[c] = options[starts[c] + random_below(state, starts[c + 1] - starts[c])]
            else:
                plan[:] = best
            walk[0] = np.inf
        else:
            plan[:] = current
            kicks = 1 + random_below(state, min(3, s.num_calls))
            for _ in range(kicks):
                c = random_below(state, s.num_calls)
                plan[c] = options[starts[c] + random_below(state, starts[c + 1] - starts[c])]
        first_call = random_below(state, s.num_calls)
        if not shed_memory(s, ints, reals, moves, options, starts, plan, first_call):
            plan[:] = fits
        here = evaluate(s, ints, reals, moves, plan, np.inf)
        here, more = descend(s, ints, reals, moves, options, starts, plan, here, first_call)
        decided += more + 1
        walk[1] += 1.0
        if here <= walk[0] * SLACK:
            if here < walk[0]:
                walk[1] = 0.0
            walk[0] = here
            current[:] = plan
        if here < best_value:
            best_value = here
            best[:] = plan
    return best_value, decided
