"""Least squares in a few positive numbers: Levenberg-Marquardt on their logarithms."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 6
_LONGEST_STEP = 0.7
_LEAST_GAIN = 1e-5


def least_squares(
    residuals: Callable[[Floats], Floats], start: Floats, *, steps: int = _STEPS
) -> Floats:
    """The point with the smallest sum of squares, from a start in its basin.

    Args:
        residuals: of a point; the Jacobian is numeric.
    """
    point, damping = start, 1e-2
    errors = residuals(point)
    for _ in range(steps):
        jacobian = _jacobian(residuals, point, errors)
        normal = jacobian.T @ jacobian
        for _ in range(8):
            damped = normal + damping * np.diag(np.diag(normal))
            step = np.linalg.solve(damped, -jacobian.T @ errors)
            tried_point = point + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
            tried = residuals(tried_point)
            if tried @ tried < errors @ errors:
                break
            damping *= 6.0
        else:
            return point
        gain = 1.0 - (tried @ tried) / (errors @ errors)
        point, errors, damping = tried_point, tried, damping / 6.0
        if gain < _LEAST_GAIN:
            break
    return point


def _jacobian(
    residuals: Callable[[Floats], Floats], point: Floats, errors: Floats, step: float = 1e-3
) -> Floats:
    columns = []
    for index in range(len(point)):
        moved = point.copy()
        moved[index] += step
        columns.append((residuals(moved) - errors) / step)
    return np.stack(columns, axis=1)
