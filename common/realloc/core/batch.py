"""Batches of rows of different lengths, and references to batches that stay where they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RaggedArray:
    """Rows of different lengths, back to back."""

    values: Array
    """[total] all rows one after the other."""
    lengths: NDArray[np.int64]
    """[rows] length of each row."""

    def __post_init__(self) -> None:
        assert self.values.ndim == 1
        assert int(self.lengths.sum()) == len(self.values)

    @staticmethod
    def from_rows(rows: Sequence[Array], dtype: str) -> "RaggedArray":
        """Join rows; each is 1-D."""
        lengths = np.array([len(row) for row in rows], np.int64)
        values = np.concatenate(rows) if rows else np.empty(0)
        return RaggedArray(values=values.astype(dtype, copy=False), lengths=lengths)

    def rows(self) -> list[Array]:
        """Each row as a view."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def take(self, indices: Sequence[int]) -> "RaggedArray":
        """The rows at these indices, in this order; the array itself where these are all rows."""
        if np.array_equal(indices, np.arange(len(self.lengths))):
            return self
        rows = self.rows()
        return RaggedArray.from_rows([rows[i] for i in indices], self.values.dtype.name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Named fields with one row per sample. A scalar field has rows of length one.

    Field names in use: ``tokens`` int32 (prompt then response), ``prompt_length`` int32,
    ``logprobs`` / ``ref_logprobs`` / ``values`` float32 (one per response token),
    ``loss_mask`` float32 (one per token), ``reward`` float32.
    """

    fields: Mapping[str, RaggedArray]

    def __post_init__(self) -> None:
        sizes = {name: len(field.lengths) for name, field in self.fields.items()}
        if len(set(sizes.values())) > 1:
            raise InvalidInput.at("fields", f"have different numbers of rows: {sizes}")

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.fields.values())).lengths) if self.fields else 0

    def take(self, indices: Sequence[int]) -> "Batch":
        """The rows at these indices, in this order."""
        return Batch(fields={name: field.take(indices) for name, field in self.fields.items()})

    @staticmethod
    def concatenate(batches: Sequence["Batch"]) -> "Batch":
        """All rows of all batches; every batch has the same fields."""
        if len(batches) == 1:
            return batches[0]
        return Batch(
            fields={
                name: RaggedArray(
                    values=np.concatenate([batch.fields[name].values for batch in batches]),
                    lengths=np.concatenate([batch.fields[name].lengths for batch in batches]),
                )
                for name in batches[0].fields
            }
        )

    def merge(self, other: "Batch") -> "Batch":
        """The fields of both, for the same rows."""
        return Batch(fields={**self.fields, **other.fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReference:
    """Rows of a batch that lies in a shard's memory, to be pulled by whoever needs them."""

    address: str
    """``host:port`` of the shard that holds the batch."""
    key: str
    """Name of the batch within that shard, unique within the cluster."""
    fields: tuple[str, ...]
    rows: tuple[int, ...]
    """Indices of the wanted rows within that batch, in order."""
    lengths: tuple[int, ...]
    """Tokens of each wanted row; the scheduler balances by them."""
