"""A safetensors file written tensor by tensor: the library's own writer wants all at once.

Format: https://huggingface.co/docs/safetensors, "Format": eight bytes with the header's
length, little-endian; a JSON header; the tensors' bytes without gaps.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from realloc.reallocation.families import CanonicalTensor


class SafetensorsWriter:
    """Writes float32 tensors in the announced order."""

    def __init__(self, path: Path, tensors: Sequence[CanonicalTensor]) -> None:
        self._file = path.open("wb")
        self._sizes = iter([tensor.num_elements for tensor in tensors])
        self._file.write(file_header(tensors, {"format": "pt"}))

    def write(self, values: NDArray[np.float32]) -> None:
        """Append the next tensor."""
        assert values.size == next(self._sizes)
        np.ascontiguousarray(values, "<f4").tofile(self._file)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def file_header(tensors: Sequence[CanonicalTensor], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors' bytes; all are float32."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        end = start + 4 * tensor.num_elements
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    return len(text).to_bytes(8, "little") + text
