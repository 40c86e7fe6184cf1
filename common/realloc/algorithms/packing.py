"""Rows of tokens packed back to back into micro-batches without padding."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import Problem, raise_problems


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMicroBatch:
    """Which rows a forward pass sees, and how attention tells them apart."""

    row_indices: tuple[int, ...]
    """Ascending indices of the rows, in the order of their tokens; may be empty."""
    cu_seqlens: NDArray[np.int32]
    """[rows + 1] where each row starts among the packed tokens; the last is their number."""
    position_ids: NDArray[np.int64]
    """[tokens] position of each token within its row."""
    max_seqlen: int
    """Tokens of the longest row; 0 without rows."""

    @property
    def num_tokens(self) -> int:
        return int(self.cu_seqlens[-1])


def pack_rows(
    lengths: Sequence[int], max_tokens: int, *, min_micro_batches: int = 0
) -> tuple[PackedMicroBatch, ...]:
    """Spread rows over as few micro-batches as first-fit finds, with similar numbers of tokens.

    Args:
        lengths: tokens of each row.
        max_tokens: most tokens of a micro-batch; a longer row gets one of its own.
        min_micro_batches: at least as many are returned, empty ones where there are fewer rows:
            ranks whose forward passes meet in collectives must agree on the number.

    Returns:
        Micro-batches in which each row occurs once, those with the lowest rows first. The same
        arguments give the same result. None without rows, where no minimum is asked.

    Raises:
        InvalidInput: a negative length, or max_tokens below 1.
    """
    _check(lengths, max_tokens)
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    bins = _first_fit(lengths, longest_first, max_tokens)
    num_bins = max(len(bins), min_micro_batches)
    balanced = _least_loaded(lengths, longest_first, num_bins)
    if all(_fits(lengths, rows, max_tokens) for rows in balanced):
        bins = balanced
    bins = sorted((sorted(rows) for rows in bins), key=lambda rows: (not rows, rows))
    bins += [[] for _ in range(num_bins - len(bins))]
    return tuple(_pack(lengths, rows) for rows in bins)


def _check(lengths: Sequence[int], max_tokens: int) -> None:
    problems = [
        Problem(f"lengths[{row}]", f"is {length}; a row has 0 or more tokens")
        for row, length in enumerate(lengths)
        if length < 0
    ]
    if max_tokens < 1:
        problems.append(Problem("max_tokens", f"is {max_tokens}; give 1 or more"))
    raise_problems(problems)


def _fits(lengths: Sequence[int], rows: Sequence[int], max_tokens: int) -> bool:
    return len(rows) <= 1 or sum(lengths[row] for row in rows) <= max_tokens


def _first_fit(lengths: Sequence[int], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Each row into the first micro-batch with room; decreasing lengths: ≤ 11/9 of the best."""
    bins: list[list[int]] = []
    room = np.empty(len(lengths), np.int64)
    for row in order:
        fitting = np.flatnonzero(room[: len(bins)] >= lengths[row])
        chosen = int(fitting[0]) if len(fitting) else len(bins)
        if chosen == len(bins):
            bins.append([])
            room[chosen] = max_tokens
        bins[chosen].append(row)
        room[chosen] -= lengths[row]
    return bins


def _least_loaded(lengths: Sequence[int], order: Sequence[int], num_bins: int) -> list[list[int]]:
    """Each row to the micro-batch with the fewest tokens, then rows, so far."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, 0, index) for index in range(num_bins)]
    heapq.heapify(loads)
    for row in order:
        tokens, rows, index = loads[0]
        bins[index].append(row)
        heapq.heapreplace(loads, (tokens + lengths[row], rows + 1, index))
    return bins


def _pack(lengths: Sequence[int], rows: Sequence[int]) -> PackedMicroBatch:
    sizes = np.array([lengths[row] for row in rows], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return PackedMicroBatch(
        row_indices=tuple(rows),
        cu_seqlens=starts.astype(np.int32),
        position_ids=np.arange(starts[-1]) - np.repeat(starts[:-1], sizes),
        max_seqlen=int(sizes.max(initial=0)),
    )
