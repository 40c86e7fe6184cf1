import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realloc.algorithms.packing import pack_rows
from realloc.core.errors import InvalidInput

lengths_of_rows = st.lists(st.integers(0, 50), max_size=40)


@given(lengths_of_rows, st.integers(1, 80), st.integers(0, 6))
def test_each_row_is_packed_once_within_the_limit(lengths, max_tokens, minimum):
    """Every row occurs once; only a row that is too long alone exceeds the limit."""
    packed = pack_rows(lengths, max_tokens, min_micro_batches=minimum)
    rows = [row for micro_batch in packed for row in micro_batch.row_indices]
    assert sorted(rows) == list(range(len(lengths)))
    assert len(packed) >= minimum
    for micro_batch in packed:
        assert micro_batch.num_tokens <= max_tokens or len(micro_batch.row_indices) == 1


@given(lengths_of_rows, st.integers(1, 80))
def test_positions_and_boundaries_follow_the_rows(lengths, max_tokens):
    """Boundaries and position ids are those of the rows laid one after the other."""
    for micro_batch in pack_rows(lengths, max_tokens):
        starts, positions = [0], []
        for row in micro_batch.row_indices:
            starts.append(starts[-1] + lengths[row])
            positions += range(lengths[row])
        assert micro_batch.cu_seqlens.tolist() == starts
        assert micro_batch.position_ids.tolist() == positions
        sizes = [lengths[row] for row in micro_batch.row_indices]
        assert micro_batch.max_seqlen == max(sizes, default=0)
        assert list(micro_batch.row_indices) == sorted(micro_batch.row_indices)
        assert micro_batch.cu_seqlens.dtype == np.int32


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 200))
def test_no_two_micro_batches_would_fit_into_one(lengths, max_tokens):
    """First-fit leaves at most one micro-batch half empty: never twice the least number."""
    fewest_conceivable = -(-sum(lengths) // max_tokens)
    assert len(pack_rows(lengths, max_tokens)) <= max(1, 2 * fewest_conceivable - 1)


def test_the_limit_goes_before_the_balance():
    """Where balancing would exceed the limit, the tight packing stays."""
    packed = pack_rows([3, 3, 2, 2, 2], max_tokens=6)
    assert [micro_batch.row_indices for micro_batch in packed] == [(0, 1), (2, 3, 4)]


def test_tokens_are_balanced():
    """Rows that need two micro-batches are split evenly, not into a full and an almost empty."""
    packed = pack_rows([10] * 12, max_tokens=100)
    assert [micro_batch.num_tokens for micro_batch in packed] == [60, 60]


def test_a_minimum_without_rows_gives_empty_micro_batches():
    """A rank without rows still takes part in as many forward passes as its peers."""
    assert pack_rows([], 10) == ()
    packed = pack_rows([], 10, min_micro_batches=2)
    assert [micro_batch.cu_seqlens.tolist() for micro_batch in packed] == [[0], [0]]


def test_wrong_input_is_named():
    """A negative length and a limit of zero are reported together, each by its place."""
    with pytest.raises(InvalidInput) as error:
        pack_rows([3, -1], 0)
    assert [problem.path for problem in error.value.problems] == ["lengths[1]", "max_tokens"]
