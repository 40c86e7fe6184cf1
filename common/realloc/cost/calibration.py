"""Fitting a hardware's few efficiencies to measured training iterations.

Seven numbers of `Efficiency` are free. Each has a prior at its preset, because what data on
small models cannot tell must not be bent by it: the fit is the largest posterior, found by
Gauss-Newton (Levenberg-Marquardt steps) in the numbers' logarithms, where an error of a factor
is alike in both directions. Residuals are logarithms of predicted over measured, reweighted
towards least absolute deviations (Holland and Welsch, 1977), so that a few odd kernels do not
pull the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput
from realloc.cost.hardware import Efficiency, Hardware
from realloc.cost.iteration_rows import IterationRow, predict_seconds
from realloc.cost.least_squares import least_squares

PRIOR_DEVIATIONS = {
    "matrix": 0.02,
    "memory": 0.05,
    "unaligned": 1.0,
    "forward_launch_seconds": 0.5,
    "backward_launch_seconds": 0.5,
    "unfused_softmax_seconds": 1.0,
    "head_seconds": 1.0,
}
"""Free numbers and how far, in logarithms, they may easily lie from their presets. Matrix and
memory efficiencies are narrow: they decide large models, which the data may not contain."""

_MODEL_DEVIATION = 0.05
"""What a right model still misses, in logarithms."""
_DISTINCT_SHAPES = 100
"""Errors come by shape of kernel, not by row: any number of rows says as much as so many."""
_LEAST_RESIDUAL = 0.02
_ROUNDS = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How predictions compare with measurements."""

    num_rows: int
    mean_absolute_percentage_error: float
    largest_percentage_error: float
    bias_percentage: float
    """Mean signed error; above 0 where predictions are too long."""
    rank_correlation: float
    """Spearman's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibrated hardware and how well it fits what it was calibrated on."""

    hardware: Hardware
    fit: Fit


def calibrate(rows: Sequence[IterationRow], preset: Hardware) -> Calibration:
    """Fit the free efficiencies of a preset to measured rows.

    Raises:
        InvalidInput: no row is measured.
    """
    measured = [row for row in rows if row.measured_ms]
    if not measured:
        raise InvalidInput.at("calibration", "has no measured row; give milliseconds in column 11")
    problem = _Problem(measured, preset)
    logs = problem.start
    weights = np.ones(len(measured))
    for _ in range(_ROUNDS):
        logs = least_squares(problem.weighted(weights), logs)
        misses = np.abs(problem.log_errors(logs))
        weights = 1.0 / np.maximum(misses, _LEAST_RESIDUAL)
    hardware = problem.hardware(logs)
    return Calibration(hardware=hardware, fit=compare(measured, hardware))


def compare(rows: Sequence[IterationRow], hardware: Hardware) -> Fit:
    """Predictions against the rows that are measured."""
    measured = [row for row in rows if row.measured_ms]
    if not measured:
        raise InvalidInput.at("rows", "have no measured row")
    truth = np.array([row.measured_ms for row in measured], dtype=np.float64)
    predicted = 1e3 * np.array([predict_seconds(row, hardware) for row in measured])
    errors = 100.0 * (predicted / truth - 1.0)
    return Fit(
        num_rows=len(measured),
        mean_absolute_percentage_error=float(np.abs(errors).mean()),
        largest_percentage_error=float(np.abs(errors).max()),
        bias_percentage=float(errors.mean()),
        rank_correlation=rank_correlation(predicted, truth),
    )


def split_halves(
    rows: Sequence[IterationRow],
) -> tuple[tuple[IterationRow, ...], tuple[IterationRow, ...]]:
    """Every second row to calibrate on, the others to check: the same halves every time."""
    return tuple(rows[::2]), tuple(rows[1::2])


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation of two series; ties share their mean rank."""
    if len(first) < 2:
        return 1.0
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = ends - (counts - 1) / 2.0
    ranks: Floats = means[inverse]
    return ranks


class _Problem:
    """Residuals of rows as a function of the free numbers' logarithms."""

    def __init__(self, rows: Sequence[IterationRow], preset: Hardware) -> None:
        self._rows = rows
        self._preset = preset
        self._names = tuple(PRIOR_DEVIATIONS)
        self._deviations = np.array(list(PRIOR_DEVIATIONS.values()))
        self._log_measured = np.log([row.measured_ms or 0.0 for row in rows])
        self.start: Floats = np.log([getattr(preset.efficiency, name) for name in self._names])

    def hardware(self, logs: Floats) -> Hardware:
        values = dict(zip(self._names, map(float, np.exp(logs)), strict=True))
        efficiency: Efficiency = replace(self._preset.efficiency, **values)
        return replace(self._preset, efficiency=efficiency)

    def log_errors(self, logs: Floats) -> Floats:
        hardware = self.hardware(logs)
        predicted = [1e3 * predict_seconds(row, hardware) for row in self._rows]
        errors: Floats = np.log(predicted) - self._log_measured
        return errors

    def weighted(self, weights: Floats) -> Callable[[Floats], Floats]:
        """Residuals of unit variance: the rows' and the priors'."""
        scale = np.sqrt(weights * _DISTINCT_SHAPES / weights.sum()) / _MODEL_DEVIATION

        def residuals(logs: Floats) -> Floats:
            prior = (logs - self.start) / self._deviations
            return np.concatenate([self.log_errors(logs) * scale, prior])

        return residuals
