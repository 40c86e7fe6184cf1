"""A search problem as the flat arrays that compiled functions read.

A *slot* is a kind of work that occupies devices once per iteration: each call has one, and
each call that may need a reallocation has one more, just before its own; so slots compare as
work is committed among equal ready times.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.problem import SearchProblem
from realloc.search.windows import topological_order, window_edges

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Space(NamedTuple):
    """Sizes of a problem, and where each of its arrays begins in `Tables.ints` or `.reals`.

    Only numbers, because compiled code hands a tuple of numbers on for nothing, where a tuple
    of arrays costs a reference count per array and call.
    """

    num_calls: int
    num_slots: int
    slot_shift: int
    """Slots are padded to 2 ** slot_shift, at least 8."""
    num_window: int
    """Calls where the graph has windows (see `realloc.search.windows`), else 0."""
    num_sources: int
    iterations: int
    staleness: int
    first_lag: int
    """Iterations simulated of which version 0 serves all but the train calls."""
    device_memory_bytes: int
    num_devices: int

    first: int
    """[O] int, first device."""
    last: int
    """[O] int, one past the last device."""
    seconds: int
    """[O] real"""
    resident: int
    """[O] int, bytes."""
    active: int
    """[O] int, bytes."""
    layout: int
    """[O] int"""

    model: int
    """[C] int, models numbered from 0 up."""
    train: int
    """[C] int, train call of the call's model, or −1."""
    call_slot: int
    """[C] int"""
    move_slot: int
    """[C] int, slot of the reallocation before the call, or −1 where none is possible."""
    slot_call: int
    """[S] int, the call of a slot."""
    waits: int
    """[K × S padded] int, of how much that a node waits for the end is not known at the start,
    where no call waits for a reallocation of version 0."""
    sources: int
    """[num_sources] int, in their order the nodes that may wait for nothing."""
    after_start: int
    """[C + 1] int, where the successors of a call begin in `after_slot`."""
    after_slot: int
    """int, their slots."""
    mate_start: int
    """[C + 1] int, where, for a train call, its model's other calls begin in `mate`."""
    mate: int
    realloc_start: int
    """[models] int, where a model's matrix begins in `Tables.moves`."""
    realloc_size: int
    """[models] int, L."""
    window_order: int
    """[C] int, calls in a topological order of the window."""
    window_before_start: int
    """[C + 1] int"""
    window_before: int
    """int, predecessors of each call within the window, its model's train call included."""

    # Scratch of the evaluator.
    slot_calls: int
    """[S padded] int, bit set of the calls whose devices a slot occupies."""
    clash: int
    """[S, S padded] real, 1 where a slot shares a device with another, else 0."""
    slot_seconds: int
    """[S padded] real"""
    gate: int
    """[C] int, slot of the reallocation that a call waits for, or −1."""
    overlap: int
    """[C] int, bit set of the calls that share a device with a call."""
    kept: int
    """[C] int, resident bytes, 0 for all but one call of each shared layout."""
    missing: int
    """[K × S padded] int, of how much that a node waits for the end is not known yet."""
    queue: int
    """[K × S padded] int, nodes whose ready time is known, as they are committed."""
    ready: int
    """[K × S padded] real, latest end so far of what a node waits for."""
    claimed: int
    """[S padded] real, latest end of work that shares a device with a slot."""
    path: int
    """[C] real, longest path to the end of a call within the window."""


class Tables(NamedTuple):
    """The two arrays that all offsets of a `Space` point into, and seconds of moves."""

    space: Space
    ints: Ints
    reals: Floats
    moves: Floats
    """The matrices of all models, one after the other: most of the memory, so bounds read the
    same."""


def build_tables(problem: SearchProblem, rules: SimulationRules) -> Tables:
    """The arrays of a problem under given rules; one evaluator at a time may use them."""
    ints = _graph_arrays(problem, rules) | {
        "first": problem.option_first_device,
        "last": problem.option_first_device + problem.option_num_devices,
        "resident": problem.option_resident_bytes,
        "active": problem.option_active_bytes,
        "layout": problem.option_layout,
    }
    num_slots = len(ints["slot_call"])
    shift = (len(ints["waits"]) // rules.iterations - 1).bit_length()
    models = np.unique(problem.call_model)
    matrices = [problem.realloc_seconds.get(int(m), np.zeros((0, 0))) for m in models]
    sizes = np.array([len(matrix) for matrix in matrices], dtype=np.int64)
    ints["realloc_size"] = sizes
    ints["realloc_start"] = np.cumsum(sizes**2) - sizes**2
    nodes, slots, calls = rules.iterations << shift, 1 << shift, problem.num_calls
    for name, size in (
        ("slot_calls", slots),
        ("gate", calls),
        ("overlap", calls),
        ("kept", calls),
        ("missing", nodes),
        ("queue", nodes),
    ):
        ints[name] = np.zeros(size, dtype=np.int64)
    reals = {
        "seconds": problem.option_seconds,
        "clash": np.zeros(num_slots * slots),
        "slot_seconds": np.zeros(slots),
        "ready": np.zeros(nodes),
        "claimed": np.zeros(slots),
        "path": np.zeros(calls),
    }
    space = Space(
        num_calls=calls,
        num_slots=num_slots,
        slot_shift=shift,
        num_window=len(ints["window_order"]),
        num_sources=len(ints["sources"]),
        iterations=rules.iterations,
        staleness=rules.staleness,
        first_lag=min(rules.iterations, 1 + rules.staleness),
        device_memory_bytes=problem.device_memory_bytes,
        num_devices=problem.num_devices,
        **offsets(ints),
        **offsets(reals),
    )
    moves = np.concatenate([matrix.ravel() for matrix in matrices])
    return Tables(space=space, ints=flat_ints(ints), reals=flat_reals(reals), moves=moves)


def flat_ints(arrays: Mapping[str, NDArray[Any]]) -> Ints:
    """All arrays one after the other."""
    flat: Ints = np.concatenate([a.ravel() for a in arrays.values()], dtype=np.int64)
    return flat


def flat_reals(arrays: Mapping[str, NDArray[Any]]) -> Floats:
    """All arrays one after the other."""
    flat: Floats = np.concatenate([a.ravel() for a in arrays.values()], dtype=np.float64)
    return flat


def offsets(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Where each array begins when they are laid one after the other."""
    sizes = [array.size for array in arrays.values()]
    begins = np.cumsum([0, *sizes[:-1]])
    return {name: int(begin) for name, begin in zip(arrays, begins, strict=True)}


def _graph_arrays(problem: SearchProblem, rules: SimulationRules) -> dict[str, Ints]:
    """The arrays over calls and slots."""
    calls = problem.num_calls
    train = np.array([problem.train_call(call) for call in range(calls)], dtype=np.int64)
    may_move = (train >= 0) & (train != np.arange(calls))
    call_slot = np.arange(calls) + np.cumsum(may_move)
    slot_call = np.zeros(calls + int(may_move.sum()), dtype=np.int64)
    slot_call[call_slot] = np.arange(calls)
    slot_call[call_slot[may_move] - 1] = np.flatnonzero(may_move)
    edges = sorted({(int(a), int(b)) for a, b in problem.edges})
    after_start, after = _lists(edges, calls)
    waits, sources = _waits(edges, train, call_slot, slot_call, rules)
    mates = [(int(train[call]), int(call)) for call in np.flatnonzero(may_move)]
    mate_start, mate = _lists(mates, calls)
    window = window_edges(calls, edges, train, rules)
    order = topological_order(calls, window) if window is not None else []
    order.sort(key=lambda call: train[call] != call)  # stable: train calls first
    before_start, before = _lists([(b, a) for a, b in window or ()], calls)
    return {
        "model": np.unique(problem.call_model, return_inverse=True)[1].astype(np.int64),
        "train": train,
        "call_slot": call_slot,
        "move_slot": np.where(may_move, call_slot - 1, -1),
        "slot_call": slot_call,
        "waits": waits,
        "sources": sources,
        "after_start": after_start,
        "after_slot": call_slot[after],
        "mate_start": mate_start,
        "mate": mate,
        "window_order": np.array(order, dtype=np.int64),
        "window_before_start": before_start,
        "window_before": before,
    }


def _waits(
    edges: list[tuple[int, int]],
    train: Ints,
    call_slot: Ints,
    slot_call: Ints,
    rules: SimulationRules,
) -> tuple[Ints, Ints]:
    """Of how many ends each node waits, as `Space.waits` has it, and the sources."""
    padded = max(8, 1 << (len(slot_call) - 1).bit_length())
    waits = np.ones((rules.iterations, padded), dtype=np.int64)
    waits[0, : len(slot_call)] = 0  # a reallocation of version 0 waits for nothing
    lag = np.where(train == np.arange(len(train)), 1, 1 + rules.staleness)
    before = np.bincount([b for _, b in edges], minlength=len(train))
    for i in range(rules.iterations):
        waits[i, call_slot] = before + ((train >= 0) & (i >= lag))
    return waits.ravel(), np.flatnonzero(waits == 0)


def _lists(pairs: list[tuple[int, int]], size: int) -> tuple[Ints, Ints]:
    """Pairs (owner, member) as one flat array of members and where each owner's begin."""
    pairs = sorted(pairs)
    counts = np.bincount([owner for owner, _ in pairs], minlength=size)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return start, np.array([member for _, member in pairs], dtype=np.int64)
