"""Safetensors files read by rectangles, into memory of the caller's.

The library's own reader maps files: every page that was read stays in the process's memory until
the file is closed, so each rank would come to hold the whole checkpoint.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from realloc.core.errors import InvalidInput

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_LEAST_BYTES = 1024
"""Shorter parts of rows are not worth a call each: whole rows are read, and cut."""
_MAX_HEADER_BYTES = 100 << 20
"""As in the library: a longer one is no header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """First byte within the file."""


class SafetensorsReader:
    """One file, open until `close`."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            InvalidInput: this is no such file, it is cut off, or an element type is none that
                weights have.
        """
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
            header, data = _header(self._file.fileno())
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            size = os.fstat(self._file.fileno()).st_size
            self.tensors = {
                name: _stored(name, entry, data, size) for name, entry in header.items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput.at("checkpoint", f"{path} cannot be read: {error}") from error

    def read(self, name: str, row: int, rows: int, col: int, cols: int) -> Tensor:
        """A rectangle of a tensor, in the type of the file.

        Returns:
            [rows, cols]; a vector has one column.

        Raises:
            InvalidInput: the file is shorter than it was.
        """
        stored = self.tensors[name]
        width = stored.shape[1] if len(stored.shape) > 1 else 1
        item = stored.dtype.itemsize
        if cols < width and cols * item < _LEAST_BYTES:
            return self.read(name, row, rows, 0, width)[:, col : col + cols]
        values = torch.empty((rows, cols), dtype=stored.dtype)
        buffer = memoryview(values.view(torch.uint8).numpy()).cast("B")
        step = rows if cols == width else 1
        for first in range(0, rows, step):
            start = first * cols * item
            offset = stored.offset + ((row + first) * width + col) * item
            self._fill(buffer[start : start + step * cols * item], offset)
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):  # a read may stop early, and always does after 2 GiB
            got = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if not got:
                raise InvalidInput.at("checkpoint", f"{self._path} ends too early")
            done += got


def _header(file: int) -> tuple[dict[str, Any], int]:
    """What a file says of itself, and the byte at which its data begin."""
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < length <= min(os.fstat(file).st_size - 8, _MAX_HEADER_BYTES):
        raise ValueError("it has no header of safetensors")
    return dict(json.loads(os.pread(file, length, 8))), 8 + length


def _stored(name: str, entry: dict[str, Any], data: int, size: int) -> StoredTensor:
    shape = tuple(int(extent) for extent in entry["shape"])
    begin, end = (data + int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} has type {entry['dtype']}; weights are {', '.join(_DTYPES)}")
    dtype = _DTYPES[entry["dtype"]]
    num_bytes = math.prod(shape) * dtype.itemsize
    if not (data <= begin <= end <= size and end - begin == num_bytes):
        raise ValueError(f"{name} does not lie within the file")
    return StoredTensor(shape=shape, dtype=dtype, offset=begin)
