"""Where a stream is cut into chunks.

A chunk that is one run of memory moves without being packed. So a stream is cut where long
runs begin and end, on either side: what both sides then have in one run is copied by neither.
"""

import numpy as np

from realloc.core.transfer import Int64

LEAST_RUN_BYTES = 256 << 10
"""Runs below this are packed together with their neighbours: an operation costs as much as
copying some 100 KiB."""


def chunk_ends(num_elements: int, wanted: Int64, chunk_elements: int) -> Int64:
    """The end of each chunk of a stream.

    Args:
        num_elements: length of the stream.
        wanted: ascending places where a cut is useful.
        chunk_elements: most elements of a chunk.

    Returns:
        int64, ascending, the last one `num_elements`. Every wanted place is among them.
    """
    stops = np.unique(np.concatenate((wanted, [num_elements]))).astype(np.int64)
    stops = stops[(stops > 0) & (stops <= num_elements)]
    starts = np.concatenate((np.zeros(1, np.int64), stops[:-1]))
    counts = -(-(stops - starts) // chunk_elements)
    first_chunk = np.concatenate(([0], np.cumsum(counts)[:-1]))
    number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(first_chunk, counts) + 1
    ends: Int64 = np.minimum(
        np.repeat(starts, counts) + number * chunk_elements, np.repeat(stops, counts)
    )
    return ends
