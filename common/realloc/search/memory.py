"""Plans that need little memory: where to begin when memory binds, and what would suffice."""

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput
from realloc.search.compilation import compiled
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]

_MAX_NODES = 20_000_000


def smallest_memory(problem: SearchProblem) -> tuple[int, Ints, bool]:
    """The plan whose busiest device needs the fewest bytes.

    Returns:
        Its peak bytes, its options, and whether the search ended, so that no plan needs less.
    """
    candidates = [_least_needy(problem, call) for call in range(problem.num_calls)]
    # Calls with the largest needs first: their devices are the scarce ones.
    need = problem.option_resident_bytes + problem.option_active_bytes
    order = np.argsort([-int(need[options].min()) for options in candidates], kind="stable")
    starts = np.cumsum([0, *(len(candidates[call]) for call in order)])
    flat = np.concatenate([candidates[call] for call in order])
    best = np.zeros(problem.num_calls, dtype=np.int64)
    peak, complete = _smallest(
        flat,
        starts,
        problem.option_first_device,
        problem.option_first_device + problem.option_num_devices,
        problem.option_resident_bytes,
        problem.option_active_bytes,
        problem.option_layout,
        problem.call_model[order],
        best,
        int(max(need[options].min() for options in candidates)),
        _MAX_NODES,
    )
    options = np.zeros(problem.num_calls, dtype=np.int64)
    options[order] = best
    return int(peak), options, bool(complete)


def raise_infeasible(problem: SearchProblem) -> NoReturn:
    """Say that no plan fits, and the smallest memory that would do.

    Raises:
        InvalidInput: always.
    """
    peak, _, complete = smallest_memory(problem)
    words = "the smallest that would do is" if complete else "enough would be, if not the smallest:"
    raise InvalidInput.at(
        "device_memory_bytes",
        f"is {problem.device_memory_bytes} and no plan fits; {words} {peak} "
        f"({peak / 2**30:.1f} GiB per device)",
    )


def _least_needy(problem: SearchProblem, call: int) -> Ints:
    """The options of a call of which no other needs no more on the same devices.

    Safe, because a plan's peak never falls when a call's bytes grow; only layouts that calls
    share must stay apart.
    """
    options = problem.options_of(call)
    mates = np.flatnonzero(problem.call_model == problem.call_model[call])
    alone = len(mates) == 1
    layout = np.full(len(options), -1) if alone else problem.option_layout[options]
    keys = (
        problem.option_active_bytes[options],
        problem.option_resident_bytes[options],
        layout,
        problem.option_num_devices[options],
        problem.option_first_device[options],
    )
    kept: list[int] = []
    place: tuple[int, ...] = ()
    least_active = 0
    for index in np.lexsort(keys):
        here = tuple(int(key[index]) for key in keys[2:])
        active = int(keys[0][index])
        if here != place or active < least_active:
            kept.append(int(options[index]))
            place, least_active = here, active
    # Small needs first, so that a good plan comes early.
    needs = problem.option_resident_bytes[kept] + problem.option_active_bytes[kept]
    return np.array(kept, dtype=np.int64)[np.argsort(needs, kind="stable")]


@compiled
def _smallest(
    flat: Ints,
    starts: Ints,
    first: Ints,
    last: Ints,
    resident: Ints,
    active: Ints,
    layout: Ints,
    model: Ints,
    best: Ints,
    floor: int,
    max_nodes: int,
) -> tuple[int, bool]:
    """Depth-first search for the smallest peak; a partial plan's peak bounds its plans'."""
    calls = len(starts) - 1
    digit = np.full(calls, -1, dtype=np.int64)
    plan = np.zeros(calls, dtype=np.int64)
    nothing = 1 << 62
    peak = nothing
    depth = 0
    nodes = 0
    while depth >= 0:
        digit[depth] += 1
        if starts[depth] + digit[depth] == starts[depth + 1]:
            digit[depth] = -1
            depth -= 1
            continue
        nodes += 1
        if nodes > max_nodes and peak < nothing:
            return peak, False
        plan[depth] = flat[starts[depth] + digit[depth]]
        here = _partial_peak(plan, depth + 1, first, last, resident, active, layout, model)
        if here >= peak:
            continue
        if depth + 1 < calls:
            depth += 1
            continue
        peak = here
        best[:] = plan
        if peak <= floor:
            return peak, True
    return peak, True


@compiled
def _partial_peak(
    plan: Ints,
    calls: int,
    first: Ints,
    last: Ints,
    resident: Ints,
    active: Ints,
    layout: Ints,
    model: Ints,
) -> int:
    """The largest peak with only the first calls of a plan in place."""
    peak = 0
    for c in range(calls):
        device = first[plan[c]]
        total = 0
        largest = 0
        for d in range(calls):
            o = plan[d]
            if not first[o] <= device < last[o]:
                continue
            largest = max(largest, active[o])
            kept = resident[o]
            if layout[o] >= 0:
                for e in range(calls):
                    p = plan[e]
                    shared = e != d and model[e] == model[d] and layout[p] == layout[o]
                    more = resident[p] > kept or (resident[p] == kept and e < d)
                    if shared and more:
                        kept = 0
                        break
            total += kept
        peak = max(peak, total + largest)
    return peak
