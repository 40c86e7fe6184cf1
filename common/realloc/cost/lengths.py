"""How long responses get: a mean, a limit and the tail between them.

A response ends with the same probability after every token and is cut at the limit: the
geometric distribution, truncated, whose survival P(length > k) = q^k for k < limit. It has
the two numbers that people know of their runs, and a tail: with a mean far below the limit
some rows still reach it, and decoding waits for them.
"""

import math
from dataclasses import dataclass

from realloc.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLengths:
    """Lengths of responses in tokens."""

    mean: float
    limit: int

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= self.limit:
            raise InvalidInput.at(
                "generation.mean_new_tokens",
                f"is {self.mean:g} and must lie between 1 and max_new_tokens, {self.limit}",
            )

    @property
    def after_first(self) -> "ResponseLengths":
        """What is left of responses behind their first token; some token stays."""
        return ResponseLengths(mean=max(1.0, self.mean - 1), limit=max(1, self.limit - 1))

    @property
    def hazard(self) -> float:
        """−ln q: how fast rows end; 0 where all reach the limit."""
        if self.mean >= self.limit:
            return 0.0
        low, high = 0.0, 1.0 / self.mean * 4 + 1.0
        for _ in range(80):
            middle = (low + high) / 2
            if _mean(middle, self.limit) > self.mean:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def survival(self, tokens: float) -> float:
        """Share of rows that are longer than so many tokens."""
        return math.exp(-self.hazard * tokens) if tokens < self.limit else 0.0

    def segments(self, rows: float, parts: int = 24) -> tuple["Segment", ...]:
        """The decoding steps of rows that start together, in runs of like steps.

        A step counts as far as any row is likely to be alive: 1 − (1 − survival)^rows.
        """
        hazard, width = self.hazard, self.limit / parts
        found = []
        for part in range(parts):
            step = (part + 0.5) * width
            alive = math.exp(-hazard * step)
            runs = 1.0 - (1.0 - alive) ** max(rows, 1.0) if alive < 1.0 else 1.0
            if runs * width < 1e-3:
                break
            found.append(
                Segment(steps=runs * width, rows=max(1.0, rows * alive / runs), position=step)
            )
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of decoding steps."""

    steps: float
    rows: float
    """Rows alive, at least one."""
    position: float
    """Tokens that they have generated, in the middle of the run."""


def _mean(hazard: float, limit: int) -> float:
    if hazard == 0.0:
        return float(limit)
    return -math.expm1(-hazard * limit) / -math.expm1(-hazard)
