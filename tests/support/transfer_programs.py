"""A planner for tests, as plain as can be: it intersects rectangles one by one.

Written apart from `realloc.reallocation`, so that the executor is tested on its own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.transfer import Blocks, Messages, TransferProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A rectangle of a canonical matrix that an endpoint stores in a local parameter."""

    endpoint: int
    parameter: str
    canonical: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    width: int
    """Elements of a row of the local parameter."""
    start: int = 0
    """Element of the local parameter where the rectangle begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One common rectangle, on one side."""

    parameter: str
    start: int
    rows: int
    cols: int
    row_stride: int
    canonical: int
    canonical_start: int
    canonical_stride: int


def make_programs(
    shapes: Sequence[tuple[int, int]],
    sources: Sequence[Holding],
    destinations: Sequence[Holding],
    num_endpoints: int,
    rounds: int | None = None,
    cuts: Sequence[int] = (),
) -> list[TransferProgram]:
    """One program per endpoint: every destination rectangle is filled from the sources.

    Sources must not overlap. A pair (sender, receiver) moves in round
    (receiver − sender) mod rounds; as many rounds as endpoints, if not told otherwise. Every
    message is cut at the elements `cuts` that it has.
    """
    sends: dict[tuple[int, int], list[Block]] = defaultdict(list)
    receives: dict[tuple[int, int], list[Block]] = defaultdict(list)
    for there in destinations:
        for here in sources:
            if here.canonical != there.canonical:
                continue
            rows = (max(here.rows[0], there.rows[0]), min(here.rows[1], there.rows[1]))
            cols = (max(here.cols[0], there.cols[0]), min(here.cols[1], there.cols[1]))
            if rows[0] < rows[1] and cols[0] < cols[1]:
                pair = (here.endpoint, there.endpoint)
                width = shapes[here.canonical][1]
                sends[pair].append(_block(here, rows, cols, width))
                receives[pair].append(_block(there, rows, cols, width))
    return [
        _program(endpoint, sends, receives, rounds or num_endpoints, cuts)
        for endpoint in range(num_endpoints)
    ]


def _block(holding: Holding, rows: tuple[int, int], cols: tuple[int, int], width: int) -> Block:
    local_row, local_col = rows[0] - holding.rows[0], cols[0] - holding.cols[0]
    return Block(
        parameter=holding.parameter,
        start=holding.start + local_row * holding.width + local_col,
        rows=rows[1] - rows[0],
        cols=cols[1] - cols[0],
        row_stride=holding.width,
        canonical=holding.canonical,
        canonical_start=rows[0] * width + cols[0],
        canonical_stride=width,
    )


def _program(
    endpoint: int,
    sends: dict[tuple[int, int], list[Block]],
    receives: dict[tuple[int, int], list[Block]],
    rounds: int,
    cuts: Sequence[int],
) -> TransferProgram:
    mine = {there: blocks for (here, there), blocks in sends.items() if here == endpoint}
    theirs = {here: blocks for (here, there), blocks in receives.items() if there == endpoint}
    sent, source_tensors = _messages(
        {peer: ((peer - endpoint) % rounds, blocks) for peer, blocks in mine.items()}, cuts
    )
    received, destination_tensors = _messages(
        {peer: ((endpoint - peer) % rounds, blocks) for peer, blocks in theirs.items()}, cuts
    )
    return TransferProgram(
        endpoint=endpoint,
        source_tensors=source_tensors,
        destination_tensors=destination_tensors,
        sends=sent,
        receives=received,
        num_rounds=rounds,
    )


def _messages(
    by_peer: dict[int, tuple[int, list[Block]]], cuts: Sequence[int]
) -> tuple[Messages, tuple[str, ...]]:
    order = sorted(by_peer, key=lambda peer: by_peer[peer][0])
    blocks = [block for peer in order for block in by_peer[peer][1]]
    names = tuple(dict.fromkeys(block.parameter for block in blocks))
    counts = [len(by_peer[peer][1]) for peer in order]
    sizes = [sum(block.rows * block.cols for block in by_peer[peer][1]) for peer in order]
    in_message = [sorted({cut for cut in cuts if cut <= size}) for size in sizes]
    columns = {
        name: np.array([getattr(block, name) for block in blocks], dtype=np.int64)
        for name in ("start", "rows", "cols", "row_stride", "canonical_start", "canonical_stride")
    }
    messages = Messages(
        peer=np.array(order, dtype=np.int32),
        round=np.array([by_peer[peer][0] for peer in order], dtype=np.int32),
        first_block=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        first_cut=np.cumsum([0, *map(len, in_message)]),
        cut=np.array([cut for of in in_message for cut in of], dtype=np.int64),
        blocks=Blocks(
            tensor=np.array([names.index(block.parameter) for block in blocks], dtype=np.int32),
            canonical=np.array([block.canonical for block in blocks], dtype=np.int32),
            **columns,
        ),
    )
    return messages, names
