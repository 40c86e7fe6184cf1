"""The weight of the KL penalty over the course of a job, as values that nobody mutates."""

from dataclasses import dataclass, replace
from typing import Protocol

from realloc.core.settings import PpoSettings

MAX_RELATIVE_ERROR = 0.2
"""The adaptive controller reacts to no larger relative error, so one odd batch cannot throw it."""


class KlController(Protocol):
    """Holds the present KL coefficient; a measurement gives the next controller."""

    @property
    def coefficient(self) -> float:
        """Weight of the per-token KL penalty in the next iteration."""
        ...

    def updated(self, kl: float, num_samples: int) -> "KlController":
        """The controller after an iteration.

        Args:
            kl: mean over the iteration's samples of the KL per sequence, nats.
            num_samples: sequences of the iteration.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedKlController:
    """The coefficient never changes."""

    coefficient: float

    def updated(self, kl: float, num_samples: int) -> "FixedKlController":
        """The same controller: it does not react."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKlController:
    """Raises the coefficient while the KL is above its target, lowers it while below.

    Source: Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, section 2.2.
    """

    coefficient: float
    target: float
    """Wanted mean KL per sequence, nats; above 0."""
    horizon: float
    """Samples after which a steady error of 20 % has changed the coefficient by 20 %."""

    def __post_init__(self) -> None:
        assert self.target > 0
        assert self.horizon > 0

    def updated(self, kl: float, num_samples: int) -> "AdaptiveKlController":
        """The coefficient scaled by the clipped relative error, in proportion to the samples."""
        error = min(max(kl / self.target - 1.0, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
        factor = 1.0 + error * num_samples / self.horizon
        # More samples than the horizon must not turn the penalty into a bonus.
        return replace(self, coefficient=self.coefficient * max(factor, 0.0))


def initial_kl_controller(settings: PpoSettings) -> FixedKlController | AdaptiveKlController:
    """The controller of a job's first iteration: adaptive where a target is set."""
    if settings.kl_target > 0:
        return AdaptiveKlController(
            coefficient=settings.kl_coefficient,
            target=settings.kl_target,
            horizon=settings.kl_horizon,
        )
    return FixedKlController(coefficient=settings.kl_coefficient)
