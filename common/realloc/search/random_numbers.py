"""Random numbers for compiled functions: a state that the caller holds, no global one.

xorshift64* of Vigna, "An experimental exploration of Marsaglia's xorshift generators,
scrambled", ACM TOMS 42(4), 2016.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import inlined

RandomState = NDArray[np.uint64]


def new_random_state(seed: int) -> RandomState:
    """A state that depends on all bits of a seed."""
    return np.random.SeedSequence(abs(seed)).generate_state(1, np.uint64) | np.uint64(1)


@inlined
def random_real(state: RandomState) -> float:
    """A number in [0, 1), advancing the state."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) * 1.1102230246251565e-16


@inlined
def random_below(state: RandomState, bound: int) -> int:
    """An integer from 0 to bound − 1, advancing the state."""
    return int(random_real(state) * bound)
