"""Where a stream is cut into chunks.

A chunk that is one run of memory moves without being packed. So a stream is cut where long
runs begin and end, on either side: what both sides then have in one run is copied by neither.
"""

from collections.abc import Sequence

import numpy as np

from realloc.core.transfer import Int64

LEAST_RUN_BYTES = 4 << 20
"""Runs below this are packed together with their neighbours: where processes take turns on their
cores, an operation more costs as much as copying 1 MiB or more on each side."""


def chunk_ends(num_elements: int, runs: Sequence[Int64], chunk_elements: int) -> Int64:
    """The end of each chunk of a stream.

    Args:
        num_elements: length of the stream.
        runs: [runs, 2] begin and end of runs at which a cut is useful, of either side.
        chunk_elements: most elements of a chunk.

    Returns:
        int64, ascending, the last one `num_elements`. Every end of a run is among them.
    """
    ends = [*(run.reshape(-1) for run in runs), np.array([num_elements], np.int64)]
    stops = np.unique(np.concatenate(ends))
    stops = stops[(stops > 0) & (stops <= num_elements)]
    starts = np.concatenate((np.zeros(1, np.int64), stops[:-1]))
    counts = -(-(stops - starts) // chunk_elements)
    first_chunk = np.concatenate(([0], np.cumsum(counts)[:-1]))
    number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(first_chunk, counts) + 1
    cut: Int64 = np.minimum(
        np.repeat(starts, counts) + number * chunk_elements, np.repeat(stops, counts)
    )
    return cut
