"""Blocks merged as far as memory goes: fewer, larger pieces take less of a host's time."""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Blocks, Int32, Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Where consecutive blocks lie, [B] each: strided rectangles of local parameters."""

    group: Int64
    """What each belongs to; nothing is merged across a border between groups."""
    tensor: Int32
    start: Int64
    rows: Int64
    cols: Int64
    row_stride: Int64

    @classmethod
    def of(cls, blocks: Blocks, which: Int64, group: Int64) -> "Places":
        """Some blocks, in this order."""
        return cls(
            group=group,
            tensor=blocks.tensor[which],
            start=blocks.start[which],
            rows=blocks.rows[which],
            cols=blocks.cols[which],
            row_stride=blocks.row_stride[which],
        )

    def take(self, which: Int64) -> "Places":
        return Places(**{of.name: getattr(self, of.name)[which] for of in fields(self)})

    def merged(self, goes_on: NDArray[np.bool_]) -> tuple["Places", Int64]:
        """The first of each sequence, and where it is; `goes_on` [B − 1] says which blocks
        belong to the one before."""
        head = np.flatnonzero(np.concatenate(([True], ~goes_on)))
        return self.take(head), head

    def alike(self) -> NDArray[np.bool_]:
        """[B − 1] whether each block is of the parameter and the group of the one before."""
        same: NDArray[np.bool_] = (np.diff(self.tensor) == 0) & (np.diff(self.group) == 0)
        return same


def coalesce(places: Places) -> Places:
    """Merge blocks that follow each other in memory, as well as in their group.

    A rectangle without gaps becomes one run; a run that continues the one before is joined
    to it; runs of equal length, evenly spaced, become the rows of a rectangle (such as the
    query heads of all groups in Megatron's order); and rectangles of equal width that continue
    each other's rows become one.
    """
    return _stacked(_evenly_spaced(_joined(_flat(places))))


def _flat(places: Places) -> Places:
    """Rectangles without gaps are runs."""
    whole = places.cols == places.row_stride
    rows = np.where(whole, 1, places.rows)
    cols = np.where(whole, places.rows * places.cols, places.cols)
    return replace(
        places, rows=rows, cols=cols, row_stride=np.where(rows == 1, cols, places.row_stride)
    )


def _joined(places: Places) -> Places:
    """Runs that continue each other."""
    run = places.rows == 1
    follows = places.start[1:] == places.start[:-1] + places.cols[:-1]
    joined, head = places.merged(run[1:] & run[:-1] & follows & places.alike())
    cols = np.where(run[head], np.add.reduceat(places.cols, head), joined.cols)
    row_stride = np.where(run[head], cols, joined.row_stride)
    return replace(joined, cols=cols, row_stride=row_stride)


def _evenly_spaced(places: Places) -> Places:
    """Runs of equal length and distance are a rectangle's rows."""
    run, cols, space = places.rows == 1, places.cols, np.diff(places.start)
    alike = run[1:] & run[:-1] & (np.diff(cols) == 0) & (space >= cols[:-1]) & places.alike()
    goes_on = alike.copy()
    goes_on[1:] &= ~alike[:-1] | (space[1:] == space[:-1])
    merged, head = places.merged(goes_on)
    several = np.append(goes_on, False)[head]
    row_stride = np.where(several, np.append(space, 0)[head], merged.row_stride)
    return replace(merged, rows=np.add.reduceat(places.rows, head), row_stride=row_stride)


def _stacked(places: Places) -> Places:
    """Rectangles that continue each other's rows."""
    several = places.rows > 1
    follows = places.start[1:] == places.start[:-1] + places.rows[:-1] * places.row_stride[:-1]
    equal = (np.diff(places.cols) == 0) & (np.diff(places.row_stride) == 0)
    merged, head = places.merged(
        several[1:] & several[:-1] & follows & equal & places.alike(),
    )
    return replace(merged, rows=np.add.reduceat(places.rows, head))
