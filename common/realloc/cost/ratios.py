"""Measured over estimated seconds, on grids of rows × length: what a profile knows of kernels.

An estimate says how seconds grow with flops and bytes; the ratio says what the device at hand
makes of it. Between measured sizes the ratio is interpolated linearly in the logarithms of rows
and length; beyond them it is held, so that the estimate, a roofline, extrapolates.
"""

import math
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Work(Enum):
    """What was timed."""

    LAYER_FORWARD = "layer_forward"
    LAYER_BACKWARD = "layer_backward"
    HEAD_FORWARD = "head_forward"
    """Final norm, projection and log-probabilities of the selected tokens."""
    HEAD_TRAIN = "head_train"
    """The same with the loss, and their backward pass."""
    STEP = "step"
    """An optimizer step; its rows are parameters, its length is 1."""
    INFERENCE_FRAME = "inference_frame"
    """An inference call of the trainer without its model's passes; its length is the
    response's, as that of the next."""
    TRAIN_FRAME = "train_frame"
    """A train call without passes and steps."""
    PREFILL = "prefill"
    """From adding prompts to an engine until each has its first token."""
    DECODE = "decode"
    """One decoding step; its length is the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One measurement over its estimate."""

    work: Work
    shape: Hashable
    """What the work's kernels look like; see `realloc.cost.profile`."""
    rows: float
    length: float
    ratio: float


class RatioTable:
    """Ratios by work and shape."""

    def __init__(self, ratios: Iterable[Ratio] = ()) -> None:
        points: dict[tuple[Work, Hashable], list[Ratio]] = {}
        for each in ratios:
            points.setdefault((each.work, each.shape), []).append(each)
        self._grids: Mapping[tuple[Work, Hashable], _Grid] = {
            key: _grid(found) for key, found in points.items()
        }

    def ratio(self, work: Work, shape: Hashable, rows: float, length: float) -> float:
        """Of measured to estimated seconds; 1 where the shape was not measured."""
        grid = self._grids.get((work, shape))
        return 1.0 if grid is None else grid.at(rows, length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    """Logarithms of ratios [rows, lengths]; both axes are logarithms, ascending."""

    rows: tuple[float, ...]
    lengths: tuple[float, ...]
    logs: Floats

    def at(self, rows: float, length: float) -> float:
        i, across = _place(self.rows, math.log(max(rows, 1e-9)))
        j, along = _place(self.lengths, math.log(max(length, 1e-9)))
        logs = self.logs
        low = (1 - along) * logs[i, j] + along * logs[i, min(j + 1, len(self.lengths) - 1)]
        i = min(i + 1, len(self.rows) - 1)
        high = (1 - along) * logs[i, j] + along * logs[i, min(j + 1, len(self.lengths) - 1)]
        return math.exp((1 - across) * low + across * high)


def _place(axis: Sequence[float], value: float) -> tuple[int, float]:
    """The cell of a value and how far through it, held at both ends."""
    if value <= axis[0]:
        return 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 1, 0.0
    cell = bisect_right(axis, value) - 1
    return cell, (value - axis[cell]) / (axis[cell + 1] - axis[cell])


def _grid(points: Sequence[Ratio]) -> _Grid:
    """A full grid; a size that was not measured takes the ratio of the nearest that was."""
    rows = sorted({math.log(point.rows) for point in points})
    lengths = sorted({math.log(point.length) for point in points})
    known = [(math.log(p.rows), math.log(p.length), math.log(p.ratio)) for p in points]
    logs = np.array(
        [
            [
                min(known, key=lambda k: (k[0] - row) ** 2 + (k[1] - length) ** 2)[2]
                for length in lengths
            ]
            for row in rows
        ]
    )
    return _Grid(rows=tuple(rows), lengths=tuple(lengths), logs=logs)
