"""Copies rows within host memory, past the cache where nobody reads them soon.

An ordinary store first reads the line that it changes from memory, and takes room in the cache; one
past the cache writes only.
"""

from typing import Any

import numba  # type: ignore[import-untyped]  # ships no types
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]  # the same
from numba.extending import intrinsic  # type: ignore[import-untyped]  # the same
from numpy.typing import NDArray

LINE_BYTES = 64
LEAST_ROW_BYTES = 1024
"""Shorter rows are faster through the cache: too much of them is parts of lines."""
SIGNED = {2: torch.int16, 4: torch.int32}
"""Integers of as many bytes as an element has."""
_UNSIGNED = {2: np.uint16, 4: np.uint32}


def bits_of(flat: torch.Tensor) -> NDArray[np.unsignedinteger]:
    """Elements in host memory, of 2 or 4 bytes, as unsigned numbers."""
    itemsize = flat.itemsize
    bits: NDArray[np.unsignedinteger] = flat.view(SIGNED[itemsize]).numpy()
    return bits.view(_UNSIGNED[itemsize])


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _write_line(_: Any, target: Any, to: Any, source: Any, of: Any) -> Any:
    """target[to : to + lanes] = source[of : of + lanes], one line that begins on its border."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, to, source, of = arguments
        pointers = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [index])
            for kind, array, index in (
                (signature.args[0], target, to),
                (signature.args[2], source, of),
            )
        ]
        line = ir.VectorType(ir.IntType(64), LINE_BYTES // 8).as_pointer()
        into, out = (builder.bitcast(pointer, line) for pointer in pointers)
        store = builder.store(builder.load(out, align=1), into, align=LINE_BYTES)
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return numba.types.void(target, to, source, of), generate


@intrinsic  # type: ignore[untyped-decorator]  # the same
def _written(_: Any) -> Any:
    """Whatever was written past the cache is written before what follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.types.void(), generate


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # the same
def copy_rows(
    target: NDArray[np.unsignedinteger],
    target_start: int,
    target_stride: int,
    source: NDArray[np.unsignedinteger],
    source_start: int,
    source_stride: int,
    rows: int,
    cols: int,
    past_cache: bool,
) -> None:
    """Copy `rows` × `cols` elements; starts and strides count elements.

    Args:
        past_cache: whether nobody reads the target soon.
    """
    past_cache = past_cache and cols * target.itemsize >= LEAST_ROW_BYTES
    lanes = LINE_BYTES // target.itemsize
    address = target.ctypes.data // target.itemsize
    for row in range(rows):
        to, of = target_start + row * target_stride, source_start + row * source_stride
        # Slices indexed from 0 are what makes the compiler use vectors.
        written, read = target[to : to + cols], source[of : of + cols]
        first = min(-(address + to) % lanes, cols) if past_cache else cols
        last = cols - (cols - first) % lanes
        for col in range(first):
            written[col] = read[col]
        for col in range(first, last, lanes):
            _write_line(written, col, read, col)
        for col in range(last, cols):
            written[col] = read[col]
    if past_cache:
        _written()
