"""Digests of canonical tensors: how both ends of a transfer prove that they hold the same bits.

The digest of a canonical tensor is a sum modulo 2^64 over its elements, so it can be summed
block by block, in any order and on any rank, and it depends on each element's position, so
swapped or shifted slices change it::

    digest(tensor) = Σ_i mix(bits(element_i), i)        i = flat index in the canonical tensor

    mix(bits, i):
        x = bits ^ (i * INDEX_MULTIPLIER)
        x = (x ^ (x >> 32)) * MIX_MULTIPLIER
        return x ^ (x >> 29)

Everything is *signed* 64-bit with wrap-around; ``>>`` is the arithmetic shift (the sign is
copied in), which is what numpy and torch do for int64, on CPU and GPU alike. ``bits`` is the
element's storage pattern, sign-extended to int64: a float32 viewed as int32, a bfloat16 or
float16 viewed as int16. So only xor, multiply, shift and add on int64 are needed, and torch
computes the very same number with ``tensor.view(torch.int32).to(torch.int64)``.

A block (see `realloc.core.transfer`) of ``rows`` × ``cols`` elements has the canonical
indices ``canonical_start + r * canonical_stride + c``. A digest says nothing about values
that are equal bit by bit, so −0.0 and 0.0 differ and NaNs compare by their payload.
"""

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Blocks

INDEX_MULTIPLIER = -7046029254386353131
"""0x9E3779B97F4A7C15 as int64: 2^64 divided by the golden ratio, made odd."""
MIX_MULTIPLIER = -4658895280553007687
"""0xBF58476D1CE4E5B9 as int64: the first multiplier of SplitMix64."""

_SIGNED = {2: np.int16, 4: np.int32}


def mix(bits: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """What one element adds to its tensor's digest; int64 with wrap-around throughout."""
    mixed = bits ^ (index * np.int64(INDEX_MULTIPLIER))
    mixed = (mixed ^ (mixed >> np.int64(32))) * np.int64(MIX_MULTIPLIER)
    return mixed ^ (mixed >> np.int64(29))


def element_bits(elements: NDArray[np.generic]) -> NDArray[np.int64]:
    """Storage patterns of 2- or 4-byte elements, sign-extended to int64."""
    signed = _SIGNED[elements.dtype.itemsize]
    return np.ascontiguousarray(elements).view(signed).astype(np.int64)


def tensor_digest(tensor: NDArray[np.generic]) -> int:
    """Digest of a whole canonical tensor, as a signed 64-bit integer."""
    bits = element_bits(tensor).reshape(-1)
    return int(mix(bits, np.arange(len(bits), dtype=np.int64)).sum(dtype=np.int64))


def block_digests(
    flat_parameters: list[NDArray[np.generic]], blocks: Blocks, num_canonical: int
) -> NDArray[np.int64]:
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
        digests[at] += mix(bits, index).sum(dtype=np.int64)  # an array: scalars warn on wrap
    return digests
