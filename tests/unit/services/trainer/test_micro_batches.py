"""Rows are packed so that each wanted token is predicted by the position before it."""

import numpy as np
import pytest
import torch

from realloc.core.batch import Batch, RaggedArray
from realloc.core.errors import InvalidInput
from services.trainer.micro_batches import (
    Selection,
    idle_micro_batch,
    join_results,
    selected_counts,
    split_batch,
)
from tests.support.engine_ranks import random_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("selection", Selection)
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_each_selected_token_finds_its_way_back(selection: Selection, max_tokens: int) -> None:
    """Splitting into micro-batches and joining gives, per row, the selected tokens, each seen
    from the position before it in the same row (from its own, for scores)."""
    batch = random_batch(12)
    micro_batches = split_batch(batch, selection, max_tokens, CPU)
    for micro_batch in micro_batches:
        at_N = micro_batch.packing.selected_N
        ahead = 0 if selection is Selection.LAST else 1
        if micro_batch.mask_N.any():
            assert torch.equal(micro_batch.tokens_T[at_N + ahead], micro_batch.targets_N)
            assert (micro_batch.packing.positions_T[at_N + ahead] >= ahead).all()
    found = join_results(micro_batches, [m.targets_N.float() for m in micro_batches], 12)
    assert (found.lengths == selected_counts(batch, selection)).all()
    for row, values in enumerate(found.rows()):
        tokens = batch.fields["tokens"].rows()[row]
        if selection is Selection.RESPONSE:
            expected = tokens[batch.fields["prompt_length"].values[row] :]
        elif selection is Selection.LAST:
            expected = tokens[-1:]
        else:
            mask = batch.fields["loss_mask"].rows()[row].copy()
            mask[0] = 0
            expected = tokens[mask > 0.5]
        np.testing.assert_array_equal(values, expected)


def test_token_fields_follow_their_tokens() -> None:
    """Whatever the packing, a token's log-probability stands beside it."""
    batch = random_batch(9)
    micro_batches = split_batch(batch, Selection.RESPONSE, 50, CPU)
    assert len(micro_batches) > 1
    found = join_results(micro_batches, [m.fields["logprobs"] for m in micro_batches], 9)
    np.testing.assert_allclose(found.values, batch.fields["logprobs"].values)


def test_rows_without_response() -> None:
    """A batch in which nothing is selected still makes a micro-batch, which counts nowhere."""
    batch = Batch(
        fields={
            "tokens": RaggedArray.from_rows([np.arange(3), np.arange(2)], "int32"),
            "prompt_length": RaggedArray.from_rows([np.array([3]), np.array([2])], "int32"),
        }
    )
    (micro_batch,) = split_batch(batch, Selection.RESPONSE, 10, CPU)
    assert micro_batch.mask_N.tolist() == [False]
    assert join_results([micro_batch], [torch.ones(1)], 2).lengths.tolist() == [0, 0]


def test_no_rows() -> None:
    """No rows make no micro-batch; the stand-in counts nowhere."""
    assert split_batch(Batch(fields={}), Selection.RESPONSE, 10, CPU) == []
    for selection in Selection:
        assert not idle_micro_batch(selection, CPU).mask_N.any()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"prompt_length": [[0], [1]]}, "prompt_length"),
        ({"prompt_length": [[1], [9]]}, "prompt_length"),
        ({"logprobs": [[0] * 3, [0]]}, r"fields\.logprobs: has 1 numbers in row 1; 2 belong there"),
        ({"tokens": [[1, 2, 3, 4], []]}, "a row without tokens"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, list[list[int]]], where: str) -> None:
    """A field of the wrong size is refused by its name."""
    rows = {"tokens": [[1, 2, 3, 4], [5, 6, 7]], "prompt_length": [[1], [1]]} | change
    fields = {
        name: RaggedArray.from_rows([np.array(row) for row in values], "float32")
        for name, values in rows.items()
    }
    with pytest.raises(InvalidInput, match=where):
        split_batch(Batch(fields=fields), Selection.RESPONSE, 10, CPU)
