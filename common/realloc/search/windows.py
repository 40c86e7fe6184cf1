"""Windows: how the steady state of a plan is bounded from one iteration's work alone.

Let r_i be the time at which iteration i's train calls become ready. The graph *has windows*
where, without staleness,

1. the train calls are exactly the calls without successors, and each waits, directly or not,
   for every other call;
2. the model of every train call has another call in the graph;
3. every call without predecessors belongs to a trained model.

Claim: (end_K − end_1) ≥ r_K − r_1, and between r_i and r_{i+1} lie exactly the train calls of
iteration i and, behind them, the reallocations and other calls of iteration i + 1.

Proof. By 1 all other calls of iteration i have ended at r_i, the latest of them then. By 2 a
train call's own predecessor in time, its call of iteration i − 1, ended before some other call
of its model in iteration i started; so all train calls of iteration i become ready at r_i,
exactly, and end before r_{i+1}. By 3 and the dependencies of trained models everything of
iteration i + 1, reallocations included, waits for a train call of iteration i, so it starts
after r_i: this is the second half of the claim.

For the first half: equal ready times are committed by iteration and position. When r_1 is
reached, nothing of iteration 2 has a known ready time; what becomes known is not earlier than
r_1 and of a later iteration. So the train calls of iteration 1 are committed next, in their
positions' order, on devices that are free at r_1. In iteration K the train calls are
committed in the same order, also with ready time r_K, on devices that may be free later. With
the order fixed, ends are sums and maxima of earlier ends, so no train call of iteration K ends
earlier after r_K than it does after r_1 in iteration 1: end_K − r_K ≥ end_1 − r_1. ∎

The same order holds in every window: all its train calls are committed before any of its other
work. So whatever shares a device with one of them starts after its end.

So (end_K − end_1) / (K − 1) is at least the shortest way to do one window's work, by any
schedule at all that keeps precedence and devices; Graham's anomalies cannot undercut that.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules

Ints = NDArray[np.int64]


def window_edges(
    calls: int, edges: list[tuple[int, int]], train: Ints, rules: SimulationRules
) -> list[tuple[int, int]] | None:
    """Precedence within one window; None where the graph has no windows.

    Args:
        edges: (call, call that waits for it) within an iteration.
        train: [C], train call of each call's model, or −1.

    Returns:
        (call, call that runs later in the window): the edges among other calls, and from each
        train call to the other calls of its model.
    """
    trains = {call for call in range(calls) if train[call] == call}
    others = set(range(calls)) - trains
    with_mates = {int(train[call]) for call in others if train[call] >= 0}
    if rules.staleness or with_mates != trains or not train_together(calls, edges, train):
        return None
    within = [(a, b) for a, b in edges if b not in trains]
    return within + [(int(train[call]), call) for call in sorted(others) if train[call] >= 0]


def train_together(calls: int, edges: list[tuple[int, int]], train: Ints) -> bool:
    """Whether conditions 1 and 3 hold."""
    trains = {call for call in range(calls) if train[call] == call}
    others = set(range(calls)) - trains
    sinks = set(range(calls)) - {a for a, _ in edges}
    sources = set(range(calls)) - {b for _, b in edges}
    if not trains or sinks != trains or any(train[call] < 0 for call in sources):
        return False
    return all(ancestors(call, edges) == others for call in trains)


def topological_order(calls: int, edges: list[tuple[int, int]]) -> list[int]:
    """The calls, each after those it waits for; the smallest index first."""
    order: list[int] = []
    while len(order) < calls:
        left = [call for call in range(calls) if call not in order]
        order.append(next(c for c in left if not any(b == c and a in left for a, b in edges)))
    return order


def ancestors(call: int, edges: list[tuple[int, int]]) -> set[int]:
    """All that a call waits for."""
    found: set[int] = set()
    frontier = {call}
    while frontier:
        frontier = {a for a, b in edges if b in frontier} - found
        found |= frontier
    return found
