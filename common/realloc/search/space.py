"""A search problem as the flat arrays that compiled functions read.

A *slot* is a kind of work that occupies devices once per iteration: each call has one, and
each call that may need a reallocation has one more, just before its own; so slots compare as
work is committed among equal ready times.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Space(NamedTuple):
    """Arrays over calls (C), slots (S) and options (O); models are numbered from 0 up."""

    num_calls: int
    num_slots: int
    slot_shift: int
    """Slots are padded to 2 ** slot_shift, at least 8."""
    iterations: int
    staleness: int
    device_memory_bytes: int
    num_devices: int

    first: Ints
    """[O], first device."""
    last: Ints
    """[O], one past the last device."""
    seconds: Floats
    resident: Ints
    active: Ints
    layout: Ints

    model: Ints
    """[C]"""
    train: Ints
    """[C], train call of the call's model, or −1."""
    call_slot: Ints
    """[C]"""
    move_slot: Ints
    """[C], slot of the reallocation before the call, or −1 where none is possible."""
    slot_call: Ints
    """[S], the call of a slot."""
    num_before: Ints
    """[C], predecessors within the iteration."""
    after_start: Ints
    """[C + 1], where the successors of a call begin in `after`."""
    after: Ints
    mate_start: Ints
    """[C + 1], where, for a train call, the other calls of its model begin in `mate`."""
    mate: Ints

    realloc_start: Ints
    """[models], where a model's matrix begins in `realloc`."""
    realloc_size: Ints
    """[models], L."""
    realloc: Floats

    window_order: Ints
    """[C], calls in topological order of the window (see `bounds`); empty where none applies."""
    window_before_start: Ints
    """[C + 1]"""
    window_before: Ints
    """Predecessors of each call within the window, trained models' own train call included."""


def build_space(problem: SearchProblem, rules: SimulationRules) -> Space:
    """The arrays of a problem under given rules."""
    calls = problem.num_calls
    train = np.array([problem.train_call(call) for call in range(calls)], dtype=np.int64)
    may_move = (train >= 0) & (train != np.arange(calls))
    call_slot = np.arange(calls) + np.cumsum(may_move)
    num_slots = int(calls + may_move.sum())
    slot_call = np.zeros(num_slots, dtype=np.int64)
    slot_call[call_slot] = np.arange(calls)
    slot_call[call_slot[may_move] - 1] = np.flatnonzero(may_move)
    edges = sorted({(int(a), int(b)) for a, b in problem.edges})
    mates = [(int(train[call]), call) for call in np.flatnonzero(may_move)]
    after_start, after = _lists(edges, calls)
    mate_start, mate = _lists(mates, calls)
    models, model = np.unique(problem.call_model, return_inverse=True)
    matrices = [problem.realloc_seconds.get(int(m), np.zeros((0, 0))) for m in models]
    sizes = np.array([len(matrix) for matrix in matrices], dtype=np.int64)
    window = window_edges(calls, edges, train, rules)
    order = _topological_order(calls, window) if window is not None else []
    before_start, before = _lists([(b, a) for a, b in window or ()], calls)
    return Space(
        num_calls=calls,
        num_slots=num_slots,
        slot_shift=max(3, (num_slots - 1).bit_length()),
        iterations=rules.iterations,
        staleness=rules.staleness,
        device_memory_bytes=problem.device_memory_bytes,
        num_devices=problem.num_devices,
        first=problem.option_first_device.copy(),
        last=problem.option_first_device + problem.option_num_devices,
        seconds=problem.option_seconds.copy(),
        resident=problem.option_resident_bytes.copy(),
        active=problem.option_active_bytes.copy(),
        layout=problem.option_layout.copy(),
        model=model.astype(np.int64),
        train=train,
        call_slot=call_slot.astype(np.int64),
        move_slot=np.where(may_move, call_slot - 1, -1).astype(np.int64),
        slot_call=slot_call,
        num_before=np.bincount([b for _, b in edges], minlength=calls).astype(np.int64),
        after_start=after_start,
        after=after,
        mate_start=mate_start,
        mate=mate,
        realloc_start=np.concatenate([[0], np.cumsum(sizes**2)[:-1]]).astype(np.int64),
        realloc_size=sizes,
        realloc=np.concatenate([np.zeros(1) if not matrices else m.ravel() for m in matrices]),
        window_order=np.array(order, dtype=np.int64),
        window_before_start=before_start,
        window_before=before,
    )


def window_edges(
    calls: int, edges: list[tuple[int, int]], train: Ints, rules: SimulationRules
) -> list[tuple[int, int]] | None:
    """Precedence within one window of the steady state, where the graph has windows.

    Let r_i be the time at which the train calls of iteration i become ready. Where

    - there is no staleness, and the train calls are exactly the calls without successors,
    - every train call waits, directly or not, for every other call of the graph,
    - the model of every train call has another call in the graph, and
    - every call without predecessors belongs to a trained model,

    the time from r_i to r_{i+1} holds exactly the train calls of iteration i and, behind
    them, the reallocations and other calls of iteration i + 1; and (end_K − end_1) is at
    least r_K − r_1. See `realloc.search.bounds` for the proof.

    Returns:
        (call, call that runs later in the window), or None where a condition fails.
    """
    trains = {call for call in range(calls) if train[call] == call}
    others = set(range(calls)) - trains
    sinks = set(range(calls)) - {a for a, _ in edges}
    sources = set(range(calls)) - {b for _, b in edges}
    with_mates = {int(train[call]) for call in others if train[call] >= 0}
    if rules.staleness or not trains or sinks != trains or with_mates != trains:
        return None
    if any(train[call] < 0 for call in sources):
        return None
    if any(_ancestors(call, edges) != others for call in trains):
        return None
    within = [(a, b) for a, b in edges if b not in trains]
    return within + [(int(train[call]), call) for call in sorted(others) if train[call] >= 0]


def _ancestors(call: int, edges: list[tuple[int, int]]) -> set[int]:
    found: set[int] = set()
    frontier = {call}
    while frontier:
        frontier = {a for a, b in edges if b in frontier} - found
        found |= frontier
    return found


def _topological_order(calls: int, edges: list[tuple[int, int]]) -> list[int]:
    order: list[int] = []
    while len(order) < calls:
        left = [call for call in range(calls) if call not in order]
        order.append(next(c for c in left if not any(b == c and a in left for a, b in edges)))
    return order


def _lists(pairs: list[tuple[int, int]], size: int) -> tuple[Ints, Ints]:
    """Pairs (owner, member) as one flat array of members and where each owner's begin."""
    pairs = sorted(pairs)
    counts = np.bincount([owner for owner, _ in pairs], minlength=size)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return start, np.array([member for _, member in pairs], dtype=np.int64)


class Workspace(NamedTuple):
    """Scratch arrays of one evaluator, allocated once."""

    slot_mask: Ints
    """[S], bit set of the calls whose devices a slot occupies or shares."""
    slot_calls: Ints
    """[S], bit set of the calls whose devices a slot occupies."""
    conflict: Ints
    """[S padded], bit set of the slots that share a device with a slot."""
    slot_seconds: Floats
    """[S padded]"""
    gate: Ints
    """[C], slot of the reallocation that a call waits for, or −1."""
    overlap: Ints
    """[C], bit set of the calls that share a device with a call."""
    kept: Ints
    """[C], resident bytes, 0 for all but one call of each shared layout."""
    missing: Ints
    """[(K + 1 + η) × S padded], what a node still waits for."""
    ready: Floats
    claimed: Floats
    """[S padded], latest end of work that shares a device with a slot."""
    queue: Ints
    """Nodes whose ready time is known."""
    path: Floats
    """[C], longest path to the end of a call within the window."""


def new_workspace(space: Space) -> Workspace:
    """Scratch arrays for plans of a space."""
    padded = 1 << space.slot_shift
    nodes = (space.iterations + 1 + space.staleness) * padded
    ints: Any = np.int64
    return Workspace(
        slot_mask=np.zeros(padded, ints),
        slot_calls=np.zeros(padded, ints),
        conflict=np.zeros(padded, ints),
        slot_seconds=np.zeros(padded),
        gate=np.zeros(space.num_calls, ints),
        overlap=np.zeros(space.num_calls, ints),
        kept=np.zeros(space.num_calls, ints),
        missing=np.zeros(nodes, ints),
        ready=np.zeros(nodes),
        claimed=np.zeros(padded),
        queue=np.zeros(nodes, ints),
        path=np.zeros(space.num_calls),
    )
