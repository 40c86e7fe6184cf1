"""Rows of data files as batches, read and tokenised where they are used."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from realloc.core.batch import Array, Batch, RaggedArray
from realloc.core.data_file import DataFile
from realloc.shard.tokenizer import Tokenizer


class DataSource:
    """The data files of one job; each is scanned once. Not thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._files: dict[str, DataFile] = {}

    def rows(self, path: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a file as JSON objects."""
        if path not in self._files:
            self._files[path] = DataFile.scan(path)
        return self._files[path].read(rows)

    def supervised(self, path: str, rows: Sequence[int]) -> Batch:
        """Prompts with their completions, each ended by the end token.

        Returns:
            ``tokens`` (prompt, completion, end), ``prompt_length``.
        """
        tokens: list[Array] = []
        prompt_lengths: list[int] = []
        for row in self.rows(path, rows):
            prompt = self._tokenizer.encode(row["prompt"])
            completion = self._tokenizer.encode(row["completion"])
            ids = [*prompt, *completion, self._tokenizer.eos_token_ids[0]]
            tokens.append(np.array(ids, np.int32))
            prompt_lengths.append(len(prompt))
        return Batch(
            fields={
                "tokens": RaggedArray.from_rows(tokens, "int32"),
                "prompt_length": scalars(prompt_lengths, "int32"),
            }
        )


def scalars(values: Sequence[float], dtype: str) -> RaggedArray:
    """A field with one number per row."""
    return RaggedArray(values=np.array(values, dtype), lengths=np.ones(len(values), np.int64))
