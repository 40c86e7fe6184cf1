"""The open choices of branch and bound: a heap by bound, and a stack of those in a hurry."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled, inlined

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Pool(NamedTuple):
    """Open choices in slots; a heap of the slots by bound, and a stack of those in a hurry."""

    choice: NDArray[np.int32]
    """[slots, C]"""
    bound: Floats
    """[slots]"""
    free: Ints
    """[slots], free ones from `sizes[2]` on."""
    heap: Ints
    stack: Ints
    sizes: Ints
    """[3], in the heap, on the stack, in use."""


def empty_pool(slots: int, calls: int) -> Pool:
    return Pool(
        choice=np.zeros((slots, calls), dtype=np.int32),
        bound=np.zeros(slots),
        free=np.arange(slots),
        heap=np.zeros(slots, dtype=np.int64),
        stack=np.zeros(slots, dtype=np.int64),
        sizes=np.zeros(3, dtype=np.int64),
    )


@compiled
def open_choice(pool: Pool, choice: Ints, bound: float, most_open: int, below: int) -> None:
    """Keep a choice open: on the heap, or on the stack where the heap is full.

    Args:
        below: choices on the stack that stay below; of the others the least bound is on top.
    """
    slot = pool.free[pool.sizes[2]]
    pool.sizes[2] += 1
    for c in range(len(choice)):
        pool.choice[slot, c] = choice[c]
    pool.bound[slot] = bound
    if pool.sizes[0] >= most_open:
        at = pool.sizes[1]
        pool.sizes[1] += 1
        while at > below and bound > pool.bound[pool.stack[at - 1]]:
            pool.stack[at] = pool.stack[at - 1]
            at -= 1
        pool.stack[at] = slot
        return
    at = pool.sizes[0]
    pool.sizes[0] += 1
    while at > 0 and bound < pool.bound[pool.heap[(at - 1) // 2]]:
        pool.heap[at] = pool.heap[(at - 1) // 2]
        at = (at - 1) // 2
    pool.heap[at] = slot


@inlined
def take_choice(pool: Pool, choice: Ints) -> float:
    """Copy the choice on top of the stack, else that of the least bound, and close it.

    Returns:
        Its bound.
    """
    if pool.sizes[1] > 0:
        pool.sizes[1] -= 1
        slot = pool.stack[pool.sizes[1]]
    else:
        slot = pool.heap[0]
        pool.sizes[0] -= 1
        _sink(pool, pool.heap[pool.sizes[0]])
    pool.sizes[2] -= 1
    pool.free[pool.sizes[2]] = slot
    for c in range(len(choice)):
        choice[c] = pool.choice[slot, c]
    return float(pool.bound[slot])


@inlined
def _sink(pool: Pool, slot: int) -> None:
    """Put a slot where the heap's first one was."""
    size = pool.sizes[0]
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and (pool.bound[pool.heap[child + 1]] < pool.bound[pool.heap[child]]):
            child += 1
        if pool.bound[pool.heap[child]] >= pool.bound[slot]:
            break
        pool.heap[at] = pool.heap[child]
        at = child
    if size > 0:
        pool.heap[at] = slot
