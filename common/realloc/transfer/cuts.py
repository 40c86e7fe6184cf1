"""Where a stream is cut into chunks.

A chunk that is one run of memory moves without being packed. So a stream is cut where long
runs begin and end, on either side: what both sides then have in one run is copied by neither.
"""

from collections.abc import Sequence

import numpy as np

from realloc.core.transfer import Int64

LEAST_RUN_BYTES = 256 << 10
"""Runs below this are packed together with their neighbours: an operation costs as much as
copying some 100 KiB."""
CUDA_LEAST_RUN_BYTES = 32 << 20
CUDA_RUN_BYTES = 1 << 30
"""Longest chunk of a GPU that needs no staging. A chunk costs the host some 50 µs, in which the
GPU copies 64 MiB."""


def chunk_ends(
    num_elements: int,
    runs: Sequence[Int64],
    chunk_elements: int,
    *,
    in_place: Sequence[Int64] = (),
    run_elements: int = 0,
) -> Int64:
    """The end of each chunk of a stream.

    Args:
        num_elements: length of the stream.
        runs: [runs, 2] begin and end of runs at which a cut is useful, of either side.
        chunk_elements: most elements of a chunk.
        in_place: those of the runs that need no staging, so that a chunk within them may have
            `run_elements`.

    Returns:
        int64, ascending, the last one `num_elements`. Every end of a run is among them.
    """
    ends = [run.reshape(-1) for run in (*runs, *in_place)]
    stops = np.unique(np.concatenate((*ends, np.array([num_elements], np.int64))))
    stops = stops[(stops > 0) & (stops <= num_elements)]
    starts = np.concatenate((np.zeros(1, np.int64), stops[:-1]))
    most = np.full(len(stops), chunk_elements)
    for run in in_place:
        most[_within(starts, run)] = max(run_elements, chunk_elements)
    counts = -(-(stops - starts) // most)
    first_chunk = np.concatenate(([0], np.cumsum(counts)[:-1]))
    number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(first_chunk, counts) + 1
    cut: Int64 = np.minimum(
        np.repeat(starts, counts) + number * np.repeat(most, counts), np.repeat(stops, counts)
    )
    return cut


def _within(starts: Int64, runs: Int64) -> Int64:
    """Which of some elements lie in a run."""
    run = np.searchsorted(runs[:, 0], starts, side="right") - 1
    inside: Int64 = np.flatnonzero((run >= 0) & (starts < np.append(runs[:, 1], 0)[run]))
    return inside
