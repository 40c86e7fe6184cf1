"""Splitting a batch over data-parallel ranks and mini-batches. Pure; rows are numbers."""

from collections.abc import Sequence

import numpy as np


def balanced_partition(
    lengths: Sequence[int], num_parts: int, group_size: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Split rows into parts of nearly equal tokens; groups stay together.

    Longest group first to the part with the fewest tokens (Graham's LPT, at most 4/3 of the
    best makespan); ties go to the lower part, so the split is deterministic.

    Args:
        lengths: tokens of each row; its size is a multiple of ``group_size``.
        num_parts: number of data-parallel ranks.
        group_size: consecutive rows that must not be parted.

    Returns:
        One ascending tuple of row indices per part; some may be empty.
    """
    tokens = np.asarray(lengths, np.int64).reshape(-1, group_size).sum(axis=1)
    totals = [0] * num_parts
    groups: list[list[int]] = [[] for _ in range(num_parts)]
    for group in np.argsort(-tokens, kind="stable").tolist():
        part = min(range(num_parts), key=lambda index: (totals[index], len(groups[index]), index))
        totals[part] += int(tokens[group])
        groups[part].append(group)
    return tuple(
        tuple(group * group_size + row for group in sorted(part) for row in range(group_size))
        for part in groups
    )


def mini_batch_rows(
    num_rows: int, num_mini_batches: int, epochs: int, group_size: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Rows of each mini-batch, epoch after epoch; each epoch in a new random order of groups.

    The order depends on the arguments alone, never on the layout. Sizes differ by at most
    one group.
    """
    generator = np.random.default_rng(seed)
    rows: list[tuple[int, ...]] = []
    for _ in range(epochs):
        order = generator.permutation(num_rows // group_size)
        for chunk in np.array_split(order, num_mini_batches):
            rows.append(
                tuple(
                    int(group) * group_size + row
                    for group in np.sort(chunk)
                    for row in range(group_size)
                )
            )
    return tuple(rows)


def iteration_rows(num_rows: int, batch_size: int, iteration: int, seed: int) -> tuple[int, ...]:
    """Rows of the data file that an iteration (from 1) uses.

    The file is passed over in a new random order each epoch; a batch may span two epochs.
    """
    first = (iteration - 1) * batch_size
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(first + len(rows), num_rows)
        order = np.random.default_rng((seed, epoch)).permutation(num_rows)
        rows += order[offset : offset + batch_size - len(rows)].tolist()
    return tuple(rows)
