"""Batches as a stream of chunks of at most 1 MiB, so that no message grows with a batch.

    for chunk in batch_chunks(batch, shard_pb2.ArrayChunk): ...
    batch = read_batch(stub.PullBatch(...), max_bytes=...)          # sync stream
    reader = BatchReader(max_bytes=...); async for chunk in …: reader.add(chunk); reader.batch()

A chunk has ``string field``, ``string dtype``, ``repeated int64 lengths``, ``bytes data`` and
``bool last``. The chunks of a field follow one another; their lengths joined are the field's
row lengths, their data joined the field's values, raw and little-endian; ``last`` ends the
field. Lengths and data are cut independently: a row may span chunks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from realloc.core.batch import Batch, RaggedArray
from realloc.core.errors import InvalidInput, ResourceExhausted

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
"""What may travel; anything else is refused by name, nothing is ever unpickled."""

MAX_DATA_BYTES = 640 * 1024
MAX_LENGTHS = 32 * 1024
"""Ten bytes each at most: with the data a chunk stays below 1 MiB."""


class Chunk(Protocol):
    """The shape of the message."""

    field: str
    dtype: str
    data: bytes
    last: bool

    @property
    def lengths(self) -> Any: ...


C = TypeVar("C")


def batch_chunks(batch: Batch, chunk_class: Callable[..., C]) -> Iterator[C]:
    """All fields of a batch, one after the other.

    Raises:
        InvalidInput: a field's dtype is not in `DTYPES`.
    """
    for name, field in batch.fields.items():
        yield from array_chunks(name, field, chunk_class)


def array_chunks(name: str, array: RaggedArray, chunk_class: Callable[..., C]) -> Iterator[C]:
    """One field as chunks; a field without rows is one empty chunk."""
    dtype = _checked_dtype(name, array.values.dtype.name)
    values = np.ascontiguousarray(array.values.astype(dtype.newbyteorder("<"), copy=False))
    data = values.view(np.uint8).data
    count = max(-(-len(data) // MAX_DATA_BYTES), -(-len(array.lengths) // MAX_LENGTHS), 1)
    for index in range(count):
        yield chunk_class(
            field=name,
            dtype=dtype.name,
            lengths=array.lengths[index * MAX_LENGTHS : (index + 1) * MAX_LENGTHS].tolist(),
            data=bytes(data[index * MAX_DATA_BYTES : (index + 1) * MAX_DATA_BYTES]),
            last=index == count - 1,
        )


def read_batch(chunks: Iterable[Chunk], max_bytes: int) -> Batch:
    """Join the chunks of a batch.

    Raises:
        InvalidInput: an unknown dtype, sizes that disagree, a field cut short or sent twice.
        ResourceExhausted: more than `max_bytes` of data.
    """
    reader = BatchReader(max_bytes)
    for chunk in chunks:
        reader.add(chunk)
    return reader.batch()


class BatchReader:
    """Joins chunks as they arrive, for streams that are read asynchronously."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self._max_bytes = max_bytes
        self._fields: dict[str, RaggedArray] = {}
        self._open: _OpenField | None = None

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk; errors as `read_batch`."""
        data = chunk.data  # a copy at each access
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise ResourceExhausted(
                f"the batch is larger than {self._max_bytes} bytes; ask for fewer rows"
            )
        if self._open is None:
            if chunk.field in self._fields:
                raise InvalidInput.at(chunk.field, "is sent twice")
            self._open = _OpenField(chunk.field, chunk.dtype)
        self._open.add(chunk, data)
        if chunk.last:
            self._fields[self._open.name] = self._open.close()
            self._open = None

    def batch(self) -> Batch:
        """The whole batch, after the last chunk; errors as `read_batch`."""
        if self._open is not None:
            raise InvalidInput.at(self._open.name, "ended before its last chunk")
        return Batch(fields=self._fields)


class _OpenField:
    """A field whose last chunk has not come yet."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self._dtype = _checked_dtype(name, dtype)
        self._data = bytearray()
        self._lengths: list[NDArray[np.int64]] = []

    def add(self, chunk: Chunk, data: bytes) -> None:
        if chunk.field != self.name:
            raise InvalidInput.at(self.name, f"ended before its last chunk: {chunk.field} follows")
        if chunk.dtype != self._dtype.name:
            raise InvalidInput.at(self.name, f"changes from {self._dtype.name} to {chunk.dtype}")
        self._data += data
        self._lengths.append(np.array(chunk.lengths, np.int64))

    def close(self) -> RaggedArray:
        lengths = np.concatenate(self._lengths)
        if (lengths < 0).any():
            raise InvalidInput.at(self.name, f"has a row of length {lengths.min()}")
        # Summed as Python integers: lengths made to overflow must not wrap around to the size.
        expected = sum(lengths.tolist()) * self._dtype.itemsize
        if expected != len(self._data):
            raise InvalidInput.at(
                self.name, f"has {len(self._data)} bytes and its lengths need {expected}"
            )
        # A view of our own bytearray, so that torch may take it without a copy.
        values = np.frombuffer(self._data, self._dtype.newbyteorder("<"))
        return RaggedArray(values=values.astype(self._dtype, copy=False), lengths=lengths)


def _checked_dtype(name: str, dtype: str) -> np.dtype[Any]:
    if dtype not in DTYPES:
        raise InvalidInput.at(name, f"has dtype {dtype!r}, which is not one of {', '.join(DTYPES)}")
    return np.dtype(dtype)
