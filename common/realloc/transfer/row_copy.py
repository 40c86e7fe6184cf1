"""Copies rows to host memory that nobody reads soon: past the cache, which they would only fill.

An ordinary store first reads the line that it changes from memory; one past the cache writes only.
"""

from typing import Any

import numba  # type: ignore[import-untyped]  # ships no types
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]  # the same
from numba.extending import intrinsic  # type: ignore[import-untyped]  # the same
from numpy.typing import NDArray

LINE_BYTES = 64
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
) -> None:
    """Copy `rows` × `cols` elements; starts and strides count elements."""
    lanes = LINE_BYTES // target.itemsize
    address = target.ctypes.data // target.itemsize
    for row in range(rows):
        to, of = target_start + row * target_stride, source_start + row * source_stride
        first = min(-(address + to) % lanes, cols)
        last = cols - (cols - first) % lanes
        for col in range(first):
            target[to + col] = source[of + col]
        for col in range(first, last, lanes):
            _write_line(target, to + col, source, of + col)
        for col in range(last, cols):
            target[to + col] = source[of + col]
    _written()
