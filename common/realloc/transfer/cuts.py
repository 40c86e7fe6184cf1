"""Where a stream is cut into chunks.

A chunk that is one run of memory moves without being packed. So a stream is cut where its plan
says that long runs begin or end, on either side: what both then have in one run neither copies.
"""

import numpy as np

from realloc.core.transfer import Int64


def chunk_ends(num_elements: int, cuts: Int64, chunk_elements: int) -> Int64:
    """The end of each chunk of a stream.

    Args:
        num_elements: length of the stream.
        cuts: elements where a cut is useful, in any order.
        chunk_elements: most elements of a chunk.

    Returns:
        int64, ascending, the last one `num_elements`. Every cut is among them.
    """
    stops = np.unique(np.append(cuts, num_elements))
    stops = stops[(stops > 0) & (stops <= num_elements)]
    starts = np.concatenate((np.zeros(1, np.int64), stops[:-1]))
    counts = -(-(stops - starts) // chunk_elements)
    first_chunk = np.concatenate(([0], np.cumsum(counts)[:-1]))
    number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(first_chunk, counts) + 1
    cut: Int64 = np.minimum(
        np.repeat(starts, counts) + number * chunk_elements, np.repeat(stops, counts)
    )
    return cut
