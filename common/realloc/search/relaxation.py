"""A problem's relaxation as flat arrays: what `realloc.search.bounds` computes bounds from."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_CALLS_WITH_MEMORY = 12
"""A graph with more calls is bounded as if any two calls fitted the memory together."""


class Relaxation(NamedTuple):
    """Sizes, and where each array begins in the two flat arrays; see `Space` for why.

    A *choice* is a set of the option tree per call. Tasks (T) are the calls and then one
    reallocation for each trained model with windows.
    """

    num_calls: int
    num_tasks: int
    has_windows: bool
    num_together: int
    """Sets of tasks that precedence allows to run together; without windows all sets of calls,
    if they are not too many."""
    most_packed: int
    """Sets of calls that fit one device; where there are more, nothing follows from them."""
    num_ends: int
    """Calls without successors; used without windows."""
    train_together: bool
    """Whether all train calls of the first iteration become ready at one time, and come last."""
    num_delays: int
    """Where they do: sets of calls of which one may hold up a train call."""
    iterations: int
    lag: int
    """1 + staleness"""
    num_sets: int
    num_devices: int
    device_memory_bytes: int

    # The option tree, see `OptionTree`.
    sets: int
    """[V], 0, 1, …: what children are read from, as if they were listed."""
    child_start: int
    child_count: int
    option: int
    group: int
    num_devices_of: int
    seconds: int
    """real"""
    area: int
    """real"""
    slowest: int
    """real"""
    resident: int
    active: int
    core_first: int
    core_last: int
    hull_first: int
    hull_last: int
    has_layout: int
    root: int
    """[C]"""
    follow: int
    """[C]"""
    follow_start: int
    """[C], see `realloc.search.followers`."""
    follow_seconds: int
    """real"""
    follow_slowest: int
    """real"""
    follow_active: int
    same_start: int
    """[C]"""
    same_at: int
    same: int
    user: int
    """[C], the first other call of a train call's model, if it may follow; else −1."""
    trade_start: int
    """[2, V + 1], see `realloc.search.trade_offs`."""
    trade_seconds: int
    """real"""
    trade_user_seconds: int
    """real"""
    trade_share: int
    """real"""
    layout: int
    """[O]"""
    model: int
    """[C], models numbered from 0 up."""
    train: int
    """[C], or −1."""

    # Moves.
    least_start: int
    """[C], where the call's table begins in `least`, −1 for calls that never move."""
    least_columns: int
    """[C]"""
    least: int
    """real, tables of `realloc.search.move_tables`."""
    moved: int
    """real, the same."""
    matrix_start: int
    """[C], where the matrix of the call's model begins in `Tables.moves`."""
    matrix_size: int
    """[C]"""
    mover: int
    """[T], the call that a reallocation task precedes; −1 for calls."""
    move_task: int
    """[C], the reallocation task before a call, or −1."""

    # Windows.
    together: int
    """[num_together], bit sets of tasks."""
    without_last: int
    """[num_together], where the same set without its last task stands before it, or −1."""
    by_size: int
    """[num_together], the sets from large to small."""
    later: int
    """[T], bit sets of a task and all that it precedes in the window."""

    # Without windows.
    order: int
    """[C], topological."""
    before_start: int
    """[C + 1]"""
    before: int
    ends: int
    """[num_ends]"""
    behind: int
    """[num_ends, C], iterations of each call that come after the first run of an end."""
    behind_either: int
    """[num_ends, num_ends, C], iterations that come after the first run of one of two ends."""
    delays: int
    """[num_delays], bit sets of calls, see `realloc.search.overlapping`."""

    # Scratch.
    call_devices: int
    """[C], fewest devices; this and what follows from `realloc.search.facts`."""
    call_resident: int
    """[C], fewest resident bytes."""
    call_active: int
    """[C], fewest active bytes."""
    call_core_first: int
    """[C], see `OptionTree`."""
    call_core_last: int
    """[C]"""
    call_hull_first: int
    """[C]"""
    call_hull_last: int
    """[C]"""
    left_out: int
    """[2 ** C], devices that a set of calls leaves to others, counted call by call."""
    held: int
    """[2 ** C], resident bytes of a set of calls on a device that has them all; −1 where they do
    not fit it."""
    largest: int
    """[2 ** C], active bytes there."""
    mates: int
    """[C], bit sets of earlier calls that may hold their model in the same layout."""
    set_devices: int
    """[num_together], devices of a set of tasks, −1 where it cannot run together."""
    set_clash: int
    """[num_together], tasks that some task of the set excludes."""
    task_devices: int
    """[T]"""
    task_clash: int
    """[T], bit sets of tasks known to share a device."""
    fitting: int
    """[num_together]"""
    packed: int
    """[most_packed], the largest sets of calls that fit one device."""
    row_label: int
    column_label: int
    task_seconds: int
    """[T] real"""
    vertex: int
    """[C], where each call is on the hull of its set."""
    last_vertex: int
    """[C], where that ends."""
    trade_weight: int
    """[C] real, what a second counts that it gives up."""
    part: int
    """[C] real, how far it is on the way to the next vertex."""
    mixed: int
    """[C] real, seconds of the calls where they just fit the memory."""
    trial: int
    """[T + 2] real, weights that may turn out worse."""
    worth: int
    """[C] real, devices of the calls."""
    solution: int
    """[T] real, weights of a linear program's members."""
    tableau: int
    """[sets + 1, T + 1] real, of the linear program with the most sets."""
    distance: int
    """[K, C] real"""


class Bounds(NamedTuple):
    """The two arrays that all offsets of a `Relaxation` point into, and seconds of moves."""

    relaxation: Relaxation
    ints: Ints
    reals: Floats
    moves: Floats
    """See `Tables`."""
