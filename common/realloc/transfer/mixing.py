"""Two ways to sum the digest of a rectangle: in torch on any device, compiled on a CPU.

`realloc.reallocation.digest` defines the numbers; both give them bit by bit. The compiled one
reads each element once and writes nothing, so it runs at the speed of memory: several times
the speed of torch, which passes over its scratch eight times.
"""

from dataclasses import dataclass
from typing import Protocol

import numba  # type: ignore[import-untyped]  # ships no types
import numpy as np
import torch
from numpy.typing import NDArray

from realloc.core.transfer import Int64
from realloc.reallocation.digest import INDEX_MULTIPLIER, MIX_MULTIPLIER

CPU_TILE_ELEMENTS = 1 << 15
"""Two int64 tiles fill a quarter of a 2 MiB cache; measured best between 2^11 and 2^17."""
CUDA_TILE_ELEMENTS = 1 << 22
COMPILED_TILE_ELEMENTS = 1 << 20
"""Only bounds how long one step takes: about a millisecond."""
_SIGNED = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """Some rows of a flat tensor, and their place in a canonical tensor."""

    start: int
    """Element of the flat tensor."""
    rows: int
    cols: int
    row_stride: int
    canonical_start: int
    canonical_stride: int


class Mixer(Protocol):
    """Sums of mixed elements, by key."""

    @property
    def tile_elements(self) -> int:
        """Most elements of one `add`."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Memory that the mixer holds."""
        ...

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        """Add a rectangle of a flat tensor, elements of 2 or 4 bytes, to a sum."""
        ...

    def values(self) -> Int64:
        """The sums so far."""
        ...


def mixer_for(device: torch.device, num_keys: int) -> Mixer:
    """The fastest mixer for parameters on a device."""
    if device.type == "cpu":
        return CompiledMixer(num_keys)
    return TorchMixer(device, num_keys, CUDA_TILE_ELEMENTS)


class CompiledMixer:
    """See `Mixer`; for parameters in host memory. Releases the GIL."""

    def __init__(self, num_keys: int) -> None:
        self._sums = np.zeros(num_keys, dtype=np.int64)

    @property
    def tile_elements(self) -> int:
        return COMPILED_TILE_ELEMENTS

    @property
    def scratch_bytes(self) -> int:
        return self._sums.nbytes

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        _add_mixed(
            flat.view(_SIGNED[flat.dtype.itemsize]).numpy(),
            rectangle.start,
            rectangle.rows,
            rectangle.cols,
            rectangle.row_stride,
            signed(rectangle.canonical_start * INDEX_MULTIPLIER),
            signed(rectangle.canonical_stride * INDEX_MULTIPLIER),
            self._sums,
            key,
        )

    def values(self) -> Int64:
        return self._sums.copy()


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba has no types
def _add_mixed(
    bits: NDArray[np.signedinteger],
    start: int,
    rows: int,
    cols: int,
    row_stride: int,
    index: int,
    index_stride: int,
    sums: Int64,
    key: int,
) -> None:
    """sums[key] += Σ mix(bits, index); indices come multiplied by INDEX_MULTIPLIER already."""
    total = np.int64(0)
    for row in range(rows):
        term = np.int64(index + row * index_stride)
        first = start + row * row_stride
        elements = bits[first : first + cols]  # indexed from 0 it is vectorised
        for col in range(elements.size):
            mixed = np.int64(elements[col]) ^ term
            mixed = (mixed ^ (mixed >> np.int64(32))) * np.int64(MIX_MULTIPLIER)
            total += mixed ^ (mixed >> np.int64(29))
            term += np.int64(INDEX_MULTIPLIER)
    sums[key] += total


class TorchMixer:
    """See `Mixer`; for any device, in scratch of a fixed size."""

    def __init__(self, device: torch.device, num_keys: int, tile_elements: int) -> None:
        self._bits = torch.empty(tile_elements, dtype=torch.int64, device=device)
        self._index = torch.empty_like(self._bits)
        steps = torch.arange(tile_elements, dtype=torch.int64, device=device)
        self._steps = steps.mul_(INDEX_MULTIPLIER)
        self._sums = torch.zeros(num_keys, dtype=torch.int64, device=device)

    @property
    def tile_elements(self) -> int:
        return len(self._bits)

    @property
    def scratch_bytes(self) -> int:
        return sum(t.nbytes for t in (self._bits, self._index, self._steps, self._sums))

    def add(self, key: int, flat: torch.Tensor, rectangle: Rectangle) -> None:
        rows, cols = rectangle.rows, rectangle.cols
        elements = flat.as_strided(
            (rows, cols), (rectangle.row_stride, 1), flat.storage_offset() + rectangle.start
        )
        bits = self._bits[: rows * cols].view(rows, cols)
        index = self._index[: rows * cols].view(rows, cols)
        bits.copy_(elements.view(_SIGNED[elements.dtype.itemsize]))

        # (start + r·stride + c)·K = start·K + r·K·stride + c·K, all modulo 2^64.
        start = signed(rectangle.canonical_start * INDEX_MULTIPLIER)
        row_terms = self._steps[:rows].mul(rectangle.canonical_stride).add_(start)
        torch.add(row_terms[:, None], self._steps[:cols], out=index)

        bits.bitwise_xor_(index)
        torch.bitwise_right_shift(bits, 32, out=index)
        bits.bitwise_xor_(index).mul_(MIX_MULTIPLIER)
        torch.bitwise_right_shift(bits, 29, out=index)
        self._sums[key].add_(bits.bitwise_xor_(index).sum())

    def values(self) -> Int64:
        return self._sums.cpu().numpy().copy()


def signed(value: int) -> int:
    """The int64 that is congruent to a value modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
