"""Blocks of parts: from elements of lines to strided rectangles of local parameters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Blocks, Int64
from realloc.reallocation.lines import Lines
from realloc.reallocation.parts import Parts, ranges
from realloc.reallocation.sides import Side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rectangles:
    """Rectangles of atoms, in packing order."""

    part: Int64
    atom: Int64
    instance: Int64
    """Index into `Lines.instance_layer`."""
    row: Int64
    rows: Int64
    col: Int64
    cols: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Where each part's rank keeps it: the part's class begins at ``place``."""

    place: Int64
    outer_shift: Int64
    """[parts] added to the number of an outer tensor."""
    layer_shift: Int64
    """[parts] added to the number of a layer's tensor."""
    num_layer: Int64
    """[parts] parameters of one layer."""
    position: Int64
    """[2, layers] local position of each layer, by `which`."""
    which: Int64
    """[parts] row of ``position``."""


def receive_places(parts: Parts, destination: Side) -> Places:
    """Where the receiver keeps each part."""
    rank = parts.flows.receiver_rank
    return Places(
        place=parts.flows.receiver_place,
        outer_shift=np.zeros_like(rank),
        layer_shift=destination.num_outer[rank],
        num_layer=destination.num_layer[rank],
        position=destination.layer_position[None],
        which=np.zeros_like(rank),
    )


def send_places(parts: Parts, source: Side, destination: Side, num_source: int) -> Places:
    """Where the sender keeps each part; destination parameters count from ``num_source``."""
    forward = parts.forward.astype(bool)
    rank = parts.flows.sender_rank
    shift = np.where(forward, num_source, 0)
    return Places(
        place=parts.flows.sender_place,
        outer_shift=shift,
        layer_shift=shift + _by_rank(source.num_outer, destination.num_outer, rank, forward),
        num_layer=_by_rank(source.num_layer, destination.num_layer, rank, forward),
        position=np.stack([source.layer_position, destination.layer_position]),
        which=parts.forward,
    )


def _by_rank(source: Int64, destination: Int64, rank: Int64, forward: NDArray[np.bool_]) -> Int64:
    of = np.empty_like(rank)
    of[forward] = destination[rank[forward]]
    of[~forward] = source[rank[~forward]]
    return of


def rectangles_of(lines: Lines, parts: Parts) -> Rectangles:
    """Cut parts, which are ranges of lines, at atoms and at incomplete rows."""
    atoms, line = lines.atoms, parts.flows.line
    of = lines.line_class[line]
    size, first = atoms.first_atom[of + 1] - atoms.first_atom[of], atoms.first_atom[of]
    begin, end = parts.flows.begin, parts.flows.end
    head = begin // atoms.elements[of] * size + lines.atom_at(line, begin) - first
    tail = (end - 1) // atoms.elements[of] * size + lines.atom_at(line, end - 1) - first
    part = np.repeat(np.arange(len(line)), tail + 1 - head)
    layer, atom = np.divmod(ranges(head, tail + 1), size[part])
    atom += first[part]
    start = layer * atoms.elements[of][part] + atoms.begin[atom] - atoms.base[of][part]
    low = np.maximum(begin[part] - start, 0)
    high = np.minimum(end[part] - start, atoms.rows[atom] * atoms.cols[atom])
    whole = Rectangles(
        part=part,
        atom=atom,
        instance=lines.line_first_instance[line][part] + layer,
        row=low // atoms.cols[atom],
        rows=(high - low) // atoms.cols[atom],
        col=np.zeros_like(low),
        cols=atoms.cols[atom],
    )
    if ((low % whole.cols) | (high % whole.cols)).any():
        return _split_rows(whole, low, high)
    return whole


def _split_rows(of: Rectangles, low: Int64, high: Int64) -> Rectangles:
    """Ranges that begin or end inside a row: its end, whole rows, the next row's begin."""
    cols = of.cols
    first_whole, last_whole = -(-low // cols), high // cols
    inside = first_whole > last_whole
    head_end = np.where(inside, high, np.minimum(first_whole * cols, high))
    body_rows = np.where(inside, 0, last_whole - first_whole)
    tail = np.where(inside, 0, high - last_whole * cols)
    row = np.stack([low // cols, first_whole, last_whole], axis=1).reshape(-1)
    rows = np.stack([np.ones_like(low), body_rows, np.ones_like(low)], axis=1).reshape(-1)
    col = np.stack([low % cols, np.zeros_like(low), np.zeros_like(low)], axis=1).reshape(-1)
    width = np.stack([head_end - low, cols, tail], axis=1).reshape(-1)
    keep = np.flatnonzero((rows > 0) & (width > 0))
    return Rectangles(
        part=of.part[keep // 3],
        atom=of.atom[keep // 3],
        instance=of.instance[keep // 3],
        row=row[keep],
        rows=rows[keep],
        col=col[keep],
        cols=width[keep],
    )


def blocks_of(lines: Lines, of: Rectangles, places: Places, parts: Parts) -> Blocks:
    """One block per rectangle, in local parameters; contiguous ones as a single row."""
    atoms, part, atom = lines.atoms, of.part, of.atom
    layer = lines.instance_layer[of.instance]
    position = places.position[places.which[part], np.maximum(layer, 0)]
    shift = np.where(
        layer < 0,
        places.outer_shift[part],
        places.layer_shift[part] + position * places.num_layer[part],
    )
    first = atoms.first_atom[lines.line_class[parts.flows.line]]
    place = places.place[part] + atom - first[part]
    stride, canonical_stride = atoms.place_stride[place], atoms.canonical_stride[atom]
    run = (of.rows == 1) | ((of.cols == stride) & (of.cols == canonical_stride))
    cols = np.where(run, of.rows * of.cols, of.cols)
    return Blocks(
        tensor=(atoms.place_tensor[place] + shift).astype(np.int32),
        start=atoms.place_start[place] + of.row * stride + of.col,
        rows=np.where(run, 1, of.rows),
        cols=cols,
        row_stride=np.where(run, cols, stride),
        canonical=(atoms.canonical[atom] + np.maximum(layer, 0) * lines.tensors_per_layer).astype(
            np.int32
        ),
        canonical_start=atoms.canonical_start[atom] + of.row * canonical_stride + of.col,
        canonical_stride=np.where(run, cols, canonical_stride),
    )


def merge_adjacent(blocks: Blocks, message: Int64) -> tuple[Blocks, Int64]:
    """Join blocks of one message that continue each other, locally and canonically.

    Args:
        message: [blocks] message of each block, ascending.

    Returns:
        Fewer blocks with the same elements in the same order, and their messages.
    """
    if not len(blocks):
        return blocks, message
    same = (
        (np.diff(message) == 0) & (np.diff(blocks.tensor) == 0) & (np.diff(blocks.canonical) == 0)
    )
    run = blocks.rows == 1
    follows = same & run[1:] & run[:-1] & _continues(blocks, blocks.cols, blocks.cols)
    below = (
        same
        & ~run[1:]
        & ~run[:-1]
        & (np.diff(blocks.cols) == 0)
        & (np.diff(blocks.row_stride) == 0)
        & _continues(blocks, blocks.rows * blocks.row_stride, blocks.rows * blocks.canonical_stride)
    )
    first = np.flatnonzero(np.concatenate([[True], ~(follows | below)]))
    cols = np.where(run[first], np.add.reduceat(blocks.cols, first), blocks.cols[first])
    rows = np.where(run[first], 1, np.add.reduceat(blocks.rows, first))
    return (
        Blocks(
            tensor=blocks.tensor[first],
            start=blocks.start[first],
            rows=rows,
            cols=cols,
            row_stride=np.where(run[first], cols, blocks.row_stride[first]),
            canonical=blocks.canonical[first],
            canonical_start=blocks.canonical_start[first],
            canonical_stride=np.where(run[first], cols, blocks.canonical_stride[first]),
        ),
        message[first],
    )


def _continues(blocks: Blocks, local: Int64, canonical: Int64) -> NDArray[np.bool_]:
    """Where a block begins at these distances from the block before."""
    found: NDArray[np.bool_] = (np.diff(blocks.start) == local[:-1]) & (
        np.diff(blocks.canonical_start) == canonical[:-1]
    )
    return found
