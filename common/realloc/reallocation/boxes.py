"""Intersections: the atoms that two layouts cut a section's canonical tensors into.

An *atom* is a box of a canonical tensor that every holder on both sides stores as one strided
block. Atoms with the same source holders and the same destination holders form a *class*:
they can travel together, so a plan reasons about a few classes instead of millions of boxes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.errors import InvalidInput
from realloc.core.transfer import Int64
from realloc.reallocation.families import ModelTensor
from realloc.reallocation.sides import LocalTensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AtomClass:
    """Atoms that the same holders have and the same holders want, in canonical order."""

    sources: tuple[int, ...]
    """Holders that store the atoms, ascending."""
    destinations: tuple[int, ...]
    """Holders that want them, ascending."""
    tensor: Int64
    """[A] index into the section's canonical tensors."""
    row: Int64
    rows: Int64
    col: Int64
    cols: Int64
    """[A] the box."""
    source_places: Int64
    """[sources, 3, A] local parameter, first element, elements per row."""
    destination_places: Int64
    """[destinations, 3, A]."""

    @property
    def num_elements(self) -> int:
        return int((self.rows * self.cols).sum())


@dataclass(slots=True)
class _Draft:
    boxes: list[tuple[int, int, int, int, int]]
    sources: list[list[tuple[int, int, int]]]
    destinations: list[list[tuple[int, int, int]]]


_Piece = tuple[int, int, int, int, int, int, int, int]
"""row, end row, col, end col, holder, parameter, start of the segment, row stride."""


def intersect(
    tensors: Sequence[ModelTensor],
    source: Sequence[LocalTensors],
    destination: Sequence[LocalTensors],
    moved: Collection[int],
) -> tuple[AtomClass, ...]:
    """The classes of one section.

    Args:
        tensors: canonical tensors of the section.
        source, destination: by holder, the local parameters of the section.
        moved: numbers of the tensors to intersect; the others are left out.

    Raises:
        InvalidInput: the destination wants a box that no source holder has.
    """
    have, want = (
        _pieces_by_tensor(len(tensors), source),
        _pieces_by_tensor(len(tensors), destination),
    )
    drafts: dict[tuple[tuple[int, ...], tuple[int, ...]], _Draft] = {}
    for tensor, (sources, destinations) in enumerate(zip(have, want, strict=True)):
        if tensor not in moved:
            continue
        rows = _cuts(sources, destinations, 0)
        cols = _cuts(sources, destinations, 2)
        sources_at = _cover(sources, rows, cols)
        for cell, wanted in sorted(_cover(destinations, rows, cols).items()):
            held = sources_at.get(cell)
            if held is None:
                name = tensors[tensor].tensor.name
                raise InvalidInput.at("source", f"no rank holds row {rows[cell[0]]} of {name}")
            key = (tuple(p[4] for p in held), tuple(p[4] for p in wanted))
            draft = drafts.get(key)
            if draft is None:
                draft = drafts[key] = _Draft([], [[] for _ in held], [[] for _ in wanted])
            row, col = rows[cell[0]], cols[cell[1]]
            draft.boxes.append((tensor, row, rows[cell[0] + 1] - row, col, cols[cell[1] + 1] - col))
            for places, pieces in ((draft.sources, held), (draft.destinations, wanted)):
                for place, piece in zip(places, pieces, strict=True):
                    start = piece[6] + (row - piece[0]) * piece[7] + col - piece[2]
                    place.append((piece[5], start, piece[7]))
    return tuple(_finished(key, draft) for key, draft in drafts.items())


def _finished(key: tuple[tuple[int, ...], tuple[int, ...]], draft: _Draft) -> AtomClass:
    tensor, row, rows, col, cols = np.array(draft.boxes, dtype=np.int64).T.copy()
    return AtomClass(
        sources=key[0],
        destinations=key[1],
        tensor=tensor,
        row=row,
        rows=rows,
        col=col,
        cols=cols,
        source_places=np.array(draft.sources, dtype=np.int64).transpose(0, 2, 1),
        destination_places=np.array(draft.destinations, dtype=np.int64).transpose(0, 2, 1),
    )


def _pieces_by_tensor(num_tensors: int, holders: Sequence[LocalTensors]) -> list[list[_Piece]]:
    found: list[list[_Piece]] = [[] for _ in range(num_tensors)]
    for holder, parameters in enumerate(holders):
        for parameter, local in enumerate(parameters):
            width = local.width
            for s in local.segments:
                found[s.tensor].append(
                    (
                        s.row,
                        s.row + s.rows,
                        s.col,
                        s.col + width,
                        holder,
                        parameter,
                        s.local_row * width,
                        width,
                    )
                )
    return found


def _cuts(sources: list[_Piece], destinations: list[_Piece], first: int) -> list[int]:
    """Sorted positions where some box begins or ends along one dim."""
    ends = {piece[first] for piece in sources}
    ends.update(piece[first + 1] for piece in sources)
    ends.update(piece[first] for piece in destinations)
    ends.update(piece[first + 1] for piece in destinations)
    return sorted(ends)


def _cover(
    pieces: list[_Piece], rows: list[int], cols: list[int]
) -> dict[tuple[int, int], list[_Piece]]:
    """For each cell of the grid of cuts, the pieces that contain it, by holder."""
    row_index = {row: index for index, row in enumerate(rows)}
    col_index = {col: index for index, col in enumerate(cols)}
    cells: dict[tuple[int, int], list[_Piece]] = {}
    for piece in pieces:
        for i in range(row_index[piece[0]], row_index[piece[1]]):
            for j in range(col_index[piece[2]], col_index[piece[3]]):
                held = cells.setdefault((i, j), [])
                # A rank that stores a box twice would receive it twice or send either copy.
                assert not held or held[-1][4] != piece[4], piece
                held.append(piece)
    return cells
