"""Runs: what of a message lies in one piece of memory, and so could move without being packed."""

from collections.abc import Iterable

import numpy as np

from realloc.core.transfer import Blocks, Int64


def run_edges(
    sides: Iterable[Blocks], message: Int64, num_messages: int, least_elements: int
) -> tuple[Int64, Int64]:
    """Where the long runs of messages begin and end, on any side.

    Args:
        sides: the same elements in the same order, cut into the same blocks; places may differ.
        message: [blocks] message of each block, ascending.
        least_elements: of a run that counts.

    Returns:
        [messages + 1] and [edges]: edges first[m] … first[m + 1] − 1 are those of message m,
        elements of the message, ascending, each once.
    """
    edges = np.concatenate([_edges(blocks, message, least_elements) for blocks in sides])
    longest = int(edges[:, 1].max(initial=0)) + 1
    # One number instead of a pair, which numpy sorts far slower.
    of, element = np.divmod(np.unique(edges[:, 0] * longest + edges[:, 1]), longest)
    return np.searchsorted(of, np.arange(num_messages + 1)), element


def _edges(blocks: Blocks, message: Int64, least_elements: int) -> Int64:
    """[2 · runs, 2] message and element."""
    size = blocks.rows * blocks.cols
    run = (blocks.rows == 1) | (blocks.cols == blocks.row_stride)
    joins = (
        (run[1:] & run[:-1])
        & (np.diff(blocks.tensor) == 0)
        & (np.diff(message) == 0)
        & (blocks.start[1:] == blocks.start[:-1] + size[:-1])
    )
    head = np.flatnonzero(np.concatenate((np.ones(min(len(size), 1), bool), ~joins)))
    length = np.add.reduceat(size, head) if len(head) else size
    head, length = (each[run[head] & (length >= least_elements)] for each in (head, length))
    before = np.cumsum(size) - size
    first_block = np.searchsorted(message, message[head])  # of the message
    begin = before[head] - before[first_block]
    return np.stack(
        (np.repeat(message[head], 2), np.stack((begin, begin + length), 1).reshape(-1)), axis=1
    )
