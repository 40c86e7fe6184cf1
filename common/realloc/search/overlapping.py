"""What may run ahead of the end of the first iteration, where iterations overlap.

Staleness lets iteration 2 begin before training ends, so (end_K − end_1) has less work in it than
K − 1 iterations; how much less is bounded here. Let the graph fulfil conditions 1 and 3 of
`realloc.search.windows`, let the staleness be 0 or 1, let x be the train call that ends iteration
1, and y any other train call; t = the end of y's first run.

Claim: all that waits for the first run of x or of y runs behind t. From t to the start of x, if
that is later, something runs at any time out of a *chain*: first runs of train calls z of smaller
position, and calls of iteration 2, of which no one waits for another; each shares a device with
the next, the last with x. And the time from t to the start of x is at most the seconds of the
chain less those of y.

Proof. By 1 the train calls of iteration 1 become ready at one time r, when all other work of
iteration 1 has ended; so t is at least r + the seconds of y. Before x, work of (ready, iteration,
position) less than x's is committed, so it was ready by r. By 3 all work of iterations behind 2
waits for a train call, so it is ready at r or later, in a later iteration: it comes after x, and
so do later runs of train calls. What remains are train calls z of iteration 1, and calls of
iteration 2 with the weights of version 0, whose reallocations ended by r. Let x start behind t.
Then it started at the end of some work that was committed before it, which was ready by r, so,
where that started behind r, it started at the end of other such work, and so on down to r: this
is the chain, and it fills the time from r to the start of x, of which the part up to t takes the
seconds of y at least. What its calls of iteration 2 wait for had ended by r, and is not in the
chain. ∎

So let w be weights of which no set of calls that can run together has more than 1. The time from
t to end_K is at least Σ w × seconds of what waits for x or y, plus Σ w × δ, where δ are the parts
of x and of the chain behind t; and end_1 − t is Σ δ. Hence
end_K − end_1 ≥ Σ w × seconds − Σ (1 − w) δ. No δ is larger than the seconds of its call; those of
the chain together are at most its seconds less those of y.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.cost.simulator import SimulationRules
from realloc.search.windows import ancestors

Ints = NDArray[np.int64]

_MOST_SETS, _MOST_CALLS = 4, 9
"""Of these graphs all sets are looked at; of others one that holds all calls."""


def delays(
    calls: int, edges: list[tuple[int, int]], train: Ints, rules: SimulationRules
) -> list[int]:
    """Bit sets of calls of iteration 2, of which one holds all those in any chain."""
    if rules.staleness == 0:
        return [0]
    others = [call for call in range(calls) if train[call] != call]
    everything = sum(1 << call for call in others)
    if len(others) > _MOST_CALLS:
        return [everything]
    related = {call: ancestors(call, edges) for call in others}
    found: list[int] = []
    for subset in range(1 << len(others)):
        chosen = [call for index, call in enumerate(others) if subset >> index & 1]
        if any(a in related[b] for a in chosen for b in chosen):
            continue
        bits = sum(1 << call for call in chosen)
        found = [kept for kept in found if kept & ~bits] + [bits]
    return found if len(found) <= _MOST_SETS else [everything]
