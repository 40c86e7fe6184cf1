"""Splitting batches over ranks and mini-batches."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realloc.dataflow.partition import balanced_partition, iteration_rows, mini_batch_rows


@given(
    st.lists(st.integers(0, 1000), max_size=12).map(lambda half: half * 2),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
)
def test_every_row_has_one_part_and_groups_stay_together(
    lengths: list[int], parts: int, group: int
) -> None:
    """Nothing is lost, nothing is doubled, no group is parted."""
    split = balanced_partition(lengths, parts, group)
    assert sorted(itertools.chain(*split)) == list(range(len(lengths)))
    for part in split:
        assert list(part) == sorted(part)
        assert all((row // group * group + i) in part for row in part for i in range(group))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(2, 3))
def test_tokens_are_balanced_to_four_thirds_of_the_best(lengths: list[int], parts: int) -> None:
    """Graham's bound, against every possible split."""
    split = balanced_partition(lengths, parts)
    heaviest = max(sum(lengths[row] for row in part) for part in split)
    best = min(
        max(sum(n for n, p in zip(lengths, choice, strict=True) if p == i) for i in range(parts))
        for choice in itertools.product(range(parts), repeat=len(lengths))
    )
    assert heaviest * 3 * parts <= best * (4 * parts - 1)


@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99)
)
def test_an_epoch_visits_every_row_once(
    groups: int, mini_batches: int, epochs: int, group: int, seed: int
) -> None:
    """Each epoch's mini-batches together are the batch."""
    rows = mini_batch_rows(groups * group, mini_batches, epochs, group, seed)
    assert len(rows) == mini_batches * epochs
    for epoch in range(epochs):
        visited = itertools.chain(*rows[epoch * mini_batches : (epoch + 1) * mini_batches])
        assert sorted(visited) == list(range(groups * group))


@pytest.mark.parametrize(("num_rows", "batch"), [(5, 3), (5, 5), (3, 7), (1, 2)])
def test_iterations_pass_over_the_file_evenly(num_rows: int, batch: int) -> None:
    """After as many rows as whole epochs hold, every row came equally often."""
    rows = list(itertools.chain(*(iteration_rows(num_rows, batch, i, 3) for i in range(1, 36))))
    whole = len(rows) // num_rows * num_rows
    for epoch in range(whole // num_rows):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
