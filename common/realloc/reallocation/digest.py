"""Digests of canonical tensors: how both ends of a transfer prove that they hold the same bits.

The digest of a canonical tensor is a weighted sum modulo 2^64 over its elements, so it can be
summed block by block, in any order and on any rank, and it depends on each element's position,
so swapped or shifted slices change it::

    digest(tensor) = Σ_i bits(element_i) · weight(i mod 1024) · factor(i div 1024)

where ``i`` is the flat index in the canonical tensor. ``bits`` is the element's storage pattern
as an unsigned integer (below 2^32). The weights are 1,024 different numbers from 1 to 2^32 − 1;
a factor is an odd number of 64 bits. Hence, for certain:

- one changed element changes the digest: its difference times its weight is neither 0 nor 2^64
  or more, and an odd factor keeps it so;
- two different elements that change places within a segment of 1,024 change the digest, for the
  same reason.

Other errors are missed with the probability that a random sum vanishes: 2^-64 where all bits of
the elements change, 2^-33 at worst, where only the sign of several float32 elements does. Bits
equal, values equal: −0.0 and 0.0 differ, and NaNs compare by their payload.

The sum over a segment takes one multiplication of 32 × 32 bits per element, which every CPU
since SSE2 does several at a time; see `docs/adr/0022-digests-in-passing.md`.

All is *signed* 64-bit with wrap-around; ``>>`` is the arithmetic shift (the sign is copied in),
which is what numpy and torch do for int64, on CPU and GPU alike.

A block (see `realloc.core.transfer`) of ``rows`` × ``cols`` elements has the canonical
indices ``canonical_start + r * canonical_stride + c``.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Blocks, Int64

SEGMENT_BITS = 10
SEGMENT_ELEMENTS = 1 << SEGMENT_BITS
"""Elements with the same factor."""
SEGMENT_MULTIPLIER = -7046029254386353131
"""0x9E3779B97F4A7C15 as int64: 2^64 divided by the golden ratio, made odd."""
MIX_MULTIPLIER = -4658895280553007687
"""0xBF58476D1CE4E5B9 as int64: the first multiplier of SplitMix64."""

_UNSIGNED = {2: np.uint16, 4: np.uint32}


def segment_weights() -> NDArray[np.uint32]:
    """Weights of the elements of a segment, uint32 [1024]: MurmurHash3's finalizer of 1 … 1024.

    It is a permutation of 32-bit numbers that leaves 0 alone, so weights differ and none is 0.
    """
    weight = np.arange(1, SEGMENT_ELEMENTS + 1, dtype=np.uint32)
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        weight = (weight ^ (weight >> np.uint32(shift))) * np.uint32(multiplier)
    return weight ^ (weight >> np.uint32(16))


def segment_factor(segment: Int64) -> Int64:
    """Odd factor of each of some segments, int64."""
    mixed = segment * np.int64(SEGMENT_MULTIPLIER)
    mixed = (mixed ^ (mixed >> np.int64(32))) * np.int64(MIX_MULTIPLIER)
    return (mixed ^ (mixed >> np.int64(29))) | np.int64(1)


def weigh(bits: Int64, index: Int64) -> Int64:
    """What elements add to their tensor's digest; int64 with wrap-around throughout."""
    weight = segment_weights().astype(np.int64)[index % SEGMENT_ELEMENTS]
    return bits * weight * segment_factor(index >> np.int64(SEGMENT_BITS))


def element_bits(elements: NDArray[np.generic]) -> Int64:
    """Storage patterns of 2- or 4-byte elements, from 0 to 2^32 − 1."""
    unsigned = _UNSIGNED[elements.dtype.itemsize]
    return np.ascontiguousarray(elements).view(unsigned).astype(np.int64)


def tensor_digest(tensor: NDArray[np.generic]) -> int:
    """Digest of a whole canonical tensor, as a signed 64-bit integer."""
    bits = element_bits(tensor).reshape(-1)
    return int(weigh(bits, np.arange(len(bits), dtype=np.int64)).sum(dtype=np.int64))


def block_digests(
    flat_parameters: list[NDArray[np.generic]], blocks: Blocks, num_canonical: int
) -> Int64:
    """Digest of what the blocks hold, per canonical tensor.

    Args:
        flat_parameters: 1-D storage of each local parameter that ``blocks.tensor`` names.
        blocks: which elements to sum.
        num_canonical: number of canonical tensors of the plan.

    Returns:
        int64 [num_canonical]; 0 where no block touches a tensor.
    """
    digests = np.zeros(num_canonical, dtype=np.int64)
    for block in range(len(blocks)):
        rows = np.arange(blocks.rows[block], dtype=np.int64)[:, None]
        cols = np.arange(blocks.cols[block], dtype=np.int64)[None, :]
        flat = flat_parameters[blocks.tensor[block]]
        bits = element_bits(flat[blocks.start[block] + rows * blocks.row_stride[block] + cols])
        index = blocks.canonical_start[block] + rows * blocks.canonical_stride[block] + cols
        at = slice(blocks.canonical[block], blocks.canonical[block] + 1)
        digests[at] += weigh(bits, index).sum(dtype=np.int64)  # an array: scalars warn on wrap
    return digests
