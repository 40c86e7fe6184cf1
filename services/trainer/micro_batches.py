"""Batches cut into micro-batches of packed rows, on the device.

Shapes: T packed tokens, B rows, N selected tokens (those whose log-probability or value is
wanted) of a micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from realloc.algorithms.packing import pack_rows
from realloc.core.batch import Batch, RaggedArray
from realloc.core.errors import InvalidInput, Problem, raise_problems
from services.trainer.packed_rows import PackedRows, pack

TOKEN_FIELDS = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
"""Fields of a batch with one number per response token."""


class Selection(Enum):
    """Which tokens of a row a call is about."""

    RESPONSE = "response"
    """Every token behind the prompt; the output at the position before predicts it."""
    LOSS_MASK = "loss_mask"
    """Every token whose loss mask is above one half, but never a row's first."""
    LAST = "last"
    """The last token, by the output at its own position: one score per row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """One forward pass."""

    rows: tuple[int, ...]
    """Indices of the rows in the batch."""
    counts: tuple[int, ...]
    """Selected tokens of each row."""
    tokens_T: Tensor
    """int64."""
    packing: PackedRows
    targets_N: Tensor
    """int64, the selected tokens."""
    mask_N: Tensor
    """bool, False only for the stand-in where nothing is selected: it counts nowhere."""
    fields: Mapping[str, Tensor]
    """float32 [N] each: the token fields of the batch at the selected tokens."""


def split_batch(
    batch: Batch, selection: Selection, max_tokens: int, device: torch.device
) -> list[MicroBatch]:
    """Pack all rows into micro-batches of at most `max_tokens` tokens.

    A batch without rows gives no micro-batch.
    """
    check_batch(batch, selection)
    if not batch.num_rows:
        return []
    lengths = batch.fields["tokens"].lengths
    return [
        _micro_batch(batch.take(packed.row_indices), packed.row_indices, selection, device)
        for packed in pack_rows(lengths.tolist(), max_tokens)
    ]


def idle_micro_batch(selection: Selection, device: torch.device) -> MicroBatch:
    """Stands in on a rank without rows, which must take part in the step all the same."""
    fields = {"tokens": np.zeros(2), "prompt_length": np.full(1, 2), "loss_mask": np.zeros(2)}
    batch = Batch(
        fields={name: RaggedArray.from_rows([row], "int32") for name, row in fields.items()}
    )
    rows = _micro_batch(batch, (0,), selection, device)
    nothing = {name: torch.zeros(1, device=device) for name in TOKEN_FIELDS}
    return MicroBatch(
        rows=(),
        counts=(),
        tokens_T=rows.tokens_T,
        packing=rows.packing,
        targets_N=rows.targets_N,
        mask_N=torch.zeros_like(rows.mask_N),
        fields=nothing,
    )


def selected_counts(batch: Batch, selection: Selection) -> NDArray[np.int64]:
    """Selected tokens of each row, int64 [B]."""
    if not batch.num_rows:
        return np.zeros(0, np.int64)
    lengths = batch.fields["tokens"].lengths
    if selection is Selection.LAST:
        return np.ones(len(lengths), np.int64)
    if selection is Selection.RESPONSE:
        return lengths - prompt_lengths(batch)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(rows[_learned(batch)], minlength=len(lengths))


def prompt_lengths(batch: Batch) -> NDArray[np.int64]:
    """Tokens of each row's prompt, int64 [B]."""
    return batch.fields["prompt_length"].values.astype(np.int64)


def check_batch(batch: Batch, selection: Selection) -> None:
    """Raise `InvalidInput` with every field that is missing or has the wrong lengths.

    A batch without rows needs no fields.
    """
    if not batch.num_rows:
        return
    wanted = {
        Selection.RESPONSE: ("tokens", "prompt_length"),
        Selection.LOSS_MASK: ("tokens", "loss_mask"),
        Selection.LAST: ("tokens",),
    }[selection]
    missing = [name for name in wanted if name not in batch.fields]
    raise_problems(Problem(f"fields.{name}", "is missing") for name in missing)
    lengths = batch.fields["tokens"].lengths
    if (lengths < 1).any():
        raise InvalidInput.at("fields.tokens", "has a row without tokens")
    if selection is Selection.LOSS_MASK:
        _check_lengths(batch, "loss_mask", lengths)
    if selection is Selection.RESPONSE:
        prompts = prompt_lengths(batch)
        if ((prompts < 1) | (prompts > lengths)).any():
            raise InvalidInput.at(
                "fields.prompt_length", "must be at least 1 and at most the row's tokens"
            )
        for name in TOKEN_FIELDS:
            _check_lengths(batch, name, lengths - prompts)


def _check_lengths(batch: Batch, name: str, wanted: NDArray[np.int64]) -> None:
    field = batch.fields.get(name)
    if field is None or (field.lengths == wanted).all():
        return
    row = int(np.flatnonzero(field.lengths != wanted)[0])
    raise InvalidInput.at(
        f"fields.{name}",
        f"has {field.lengths[row]} numbers in row {row}; {wanted[row]} belong there",
    )


def _learned(batch: Batch) -> NDArray[np.bool_]:
    """Which packed tokens the loss mask selects."""
    tokens = batch.fields["tokens"]
    learned: NDArray[np.bool_] = batch.fields["loss_mask"].values.astype(np.float32) > 0.5
    learned[np.cumsum(tokens.lengths) - tokens.lengths] = False  # nothing predicts a first token
    return learned


def _selected(batch: Batch, selection: Selection) -> NDArray[np.int64]:
    """Packed positions whose output is wanted, ascending."""
    lengths = batch.fields["tokens"].lengths
    ends = np.cumsum(lengths)
    if selection is Selection.LAST:
        return ends - 1
    if selection is Selection.LOSS_MASK:
        return np.flatnonzero(_learned(batch)) - 1
    prompts = prompt_lengths(batch)
    starts = ends - lengths
    rows = np.repeat(np.arange(len(lengths)), lengths)
    is_response = np.arange(int(ends[-1])) - starts[rows] >= prompts[rows]
    return np.flatnonzero(is_response) - 1


def _micro_batch(
    batch: Batch, rows: tuple[int, ...], selection: Selection, device: torch.device
) -> MicroBatch:
    tokens = batch.fields["tokens"]
    selected = _selected(batch, selection)
    mask_N = torch.ones(max(len(selected), 1), dtype=torch.bool, device=device)
    empty = not len(selected)
    if empty:  # collectives and matrix products want at least one token
        selected = np.zeros(1, np.int64)
        mask_N.zero_()
    ahead = 0 if selection is Selection.LAST or empty else 1
    ids = tokens.values.astype(np.int64)
    fields = {
        name: np.zeros(1, np.float32) if empty else batch.fields[name].values.astype(np.float32)
        for name in TOKEN_FIELDS
        if name in batch.fields and selection is Selection.RESPONSE
    }
    return MicroBatch(
        rows=rows,
        counts=tuple(selected_counts(batch, selection).tolist()),
        tokens_T=torch.from_numpy(ids).to(device),
        packing=pack(tokens.lengths, selected, device),
        targets_N=torch.from_numpy(ids[selected + ahead]).to(device),
        mask_N=mask_N,
        fields={name: torch.from_numpy(values).to(device) for name, values in fields.items()},
    )


def join_results(
    micro_batches: list[MicroBatch], results: list[Tensor], num_rows: int
) -> RaggedArray:
    """Results of the selected tokens in the order of the batch's rows.

    Args:
        micro_batches: all of a batch.
        results: float32 [N] for each micro-batch.
        num_rows: rows of the batch.
    """
    by_row: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * num_rows
    for micro_batch, result in zip(micro_batches, results, strict=True):
        values = result.cpu().numpy()
        ends = np.cumsum(micro_batch.counts)
        for row, count, end in zip(micro_batch.rows, micro_batch.counts, ends, strict=True):
            by_row[row] = values[end - count : end]
    return RaggedArray.from_rows(by_row, "float32")
