"""Batches in chunks: what goes in comes out, chunks stay small, lies are refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.batch import Batch, RaggedArray
from realloc.core.errors import InvalidInput, ResourceExhausted
from realloc.wire import ragged
from realloc.wire.ragged import BatchReader, batch_chunks, read_batch


def ragged_array(lengths: list[int], dtype: str, seed: int = 0) -> RaggedArray:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2 if dtype == "bool" else 200, sum(lengths)).astype(dtype)
    return RaggedArray(values=values, lengths=np.array(lengths, np.int64))


def sent(batch: Batch, messages: SimpleNamespace) -> list[Any]:
    chunk_class = messages.ArrayChunk
    return [
        chunk_class.FromString(chunk.SerializeToString())
        for chunk in batch_chunks(batch, chunk_class)
    ]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    dtypes=st.lists(st.sampled_from(ragged.DTYPES), min_size=1, max_size=3),
    max_data=st.integers(1, 64),
    max_lengths=st.integers(1, 8),
)
def test_batches_survive_the_wire(
    messages: SimpleNamespace,
    lengths: list[int],
    dtypes: list[str],
    max_data: int,
    max_lengths: int,
) -> None:
    """Wherever data and lengths are cut, every field comes back bit for bit."""
    batch = Batch(
        fields={f"field{i}": ragged_array(lengths, dtype, i) for i, dtype in enumerate(dtypes)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "MAX_DATA_BYTES", max_data)
        patch.setattr(ragged, "MAX_LENGTHS", max_lengths)
        found = read_batch(sent(batch, messages), max_bytes=1 << 20)
    assert found.fields.keys() == batch.fields.keys()
    for name, expected in batch.fields.items():
        actual = found.fields[name]
        np.testing.assert_array_equal(actual.values, expected.values)
        np.testing.assert_array_equal(actual.lengths, expected.lengths)
        assert actual.values.dtype == expected.values.dtype


def test_chunks_stay_below_a_mebibyte(messages: SimpleNamespace) -> None:
    """Neither long rows nor many rows make a chunk larger than 1 MiB."""
    long_row = Batch(fields={"tokens": ragged_array([3_000_000], "int32")})
    many_rows = Batch(fields={"reward": ragged_array([1] * 1_000_000, "uint8")})
    for batch in (long_row, many_rows):
        sizes = [chunk.ByteSize() for chunk in batch_chunks(batch, messages.ArrayChunk)]
        assert max(sizes) <= 1 << 20
        assert len(sizes) > 1


def test_received_values_can_be_written(messages: SimpleNamespace) -> None:
    """Received arrays are the receiver's own, so torch may take them without a copy."""
    batch = Batch(fields={"tokens": ragged_array([3], "int32")})
    values = read_batch(sent(batch, messages), max_bytes=100).fields["tokens"].values
    values[0] = 7
    assert values[0] == 7


def test_an_empty_batch_has_no_chunks(messages: SimpleNamespace) -> None:
    """No fields, no chunks; a field without rows is kept."""
    assert read_batch([], max_bytes=0).num_rows == 0
    batch = Batch(fields={"tokens": ragged_array([], "int32")})
    assert read_batch(sent(batch, messages), max_bytes=0).fields["tokens"].lengths.size == 0


def chunk(messages: SimpleNamespace, **changes: Any) -> Any:
    fields = {"field": "a", "dtype": "int32", "lengths": [1], "data": b"0123", "last": True}
    return messages.ArrayChunk(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([{"dtype": "object"}], "dtype 'object', which is not one of"),
        ([{"dtype": ""}], "dtype '', which is not one of"),
        ([{"data": b"012"}], "has 3 bytes and its lengths need 4"),
        ([{"lengths": [1, 1]}], "has 4 bytes and its lengths need 8"),
        ([{"lengths": [2, -1]}], "has a row of length -1"),
        ([{"lengths": [2**62, 2**62, 2**62, 2**62, 1]}], "has 4 bytes and its lengths need"),
        ([{"last": False}], "ended before its last chunk"),
        ([{"last": False}, {"field": "b"}], "ended before its last chunk: b follows"),
        ([{"last": False}, {"dtype": "float32"}], "changes from int32 to float32"),
        ([{}, {}], "is sent twice"),
        ([{}, {"field": "b", "lengths": [], "data": b""}], "different numbers of rows"),
    ],
)
def test_streams_that_disagree_are_refused(
    messages: SimpleNamespace, changes: list[dict[str, Any]], reason: str
) -> None:
    """A stream that contradicts itself is an InvalidInput that names field and sizes."""
    with pytest.raises(InvalidInput, match=reason):
        read_batch([chunk(messages, **change) for change in changes], max_bytes=100)


def test_a_batch_has_a_bound(messages: SimpleNamespace) -> None:
    """More data than the receiver allows ends the stream at once."""
    reader = BatchReader(max_bytes=7)
    reader.add(chunk(messages, last=False))
    with pytest.raises(ResourceExhausted, match="larger than 7 bytes"):
        reader.add(chunk(messages))


def test_unknown_dtypes_are_not_sent(messages: SimpleNamespace) -> None:
    """An array of objects never leaves the process."""
    array = RaggedArray(values=np.array(["x"], object), lengths=np.array([1], np.int64))
    with pytest.raises(InvalidInput, match="dtype 'object'"):
        sent(Batch(fields={"text": array}), messages)
