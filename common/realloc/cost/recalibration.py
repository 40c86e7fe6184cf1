"""Corrections of predicted seconds, learned from what calls really took.

What no profile sees (user code, other people's load, a lucky cache) shows in the ratio of
measured to predicted seconds, and stays alike from iteration to iteration. So the latest ratios
are kept for each kind of call, model and strategy, and a prediction is multiplied by their
median: one odd iteration changes nothing. A strategy that has not run takes the model's median
over its other strategies, so that the measured ones are not judged by another measure.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType
from typing import Any

from realloc.core.errors import InvalidInput
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy

MOST_RATIOS = 16
"""Latest ratios of a call; older ones are forgotten."""
MOST_CALLS = 128
"""Calls whose ratios are kept; the one that was seen longest ago is forgotten first."""
LEAST_RATIOS = 3
"""Ratios before they count: the first iterations also warm up."""
BOUND = 8.0
"""Corrections lie between this and its inverse: beyond it something is broken, not slow."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class MeasuredCall:
    """What ran: corrections are kept by it."""

    kind: str
    """``generate``, ``inference``, ``train``, or ``reallocate``."""
    model: str
    """The architecture's name; see `model_name`."""
    strategy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """Ratios of measured to predicted seconds, by call, the latest seen last."""

    ratios: Mapping[MeasuredCall, tuple[float, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def factor(self, call: MeasuredCall) -> float:
        """What to multiply the call's predicted seconds by; 1 where nothing alike has run."""
        own = self.ratios.get(call, ())
        if len(own) < LEAST_RATIOS:
            own = tuple(
                ratio
                for other, found in self.ratios.items()
                if (other.kind, other.model) == (call.kind, call.model)
                for ratio in found
            )
        if len(own) < LEAST_RATIOS:
            return 1.0
        return min(BOUND, max(1.0 / BOUND, median(own)))

    def observed(self, call: MeasuredCall, *, predicted: float, measured: float) -> "Corrections":
        """With one more measurement; nothing is learned from what takes no time.

        Args:
            predicted: the cost model's seconds, not corrected.
        """
        if not (predicted > 0 and measured > 0 and math.isfinite(measured / predicted)):
            return self
        ratios = dict(self.ratios)
        latest = (*ratios.pop(call, ()), measured / predicted)[-MOST_RATIOS:]
        kept = list(ratios.items())[-(MOST_CALLS - 1) :]
        return replace(self, ratios=MappingProxyType({**dict(kept), call: latest}))

    def to_json(self) -> str:
        """As text, to be stored."""
        return json.dumps(
            [
                [call.kind, call.model, call.strategy, [round(ratio, 4) for ratio in ratios]]
                for call, ratios in self.ratios.items()
            ]
        )

    @staticmethod
    def from_json(text: str | bytes) -> "Corrections":
        """Read back what `to_json` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            return Corrections(ratios=MappingProxyType(dict(map(_entry, json.loads(text)))))
        except (ValueError, TypeError) as error:
            raise InvalidInput.at("corrections", f"are unreadable: {error}") from error


def model_name(architecture: ModelArchitecture) -> str:
    """Names a model by what decides its seconds, so that checkpoints of one size are alike."""
    a = architecture
    return (
        f"{a.family}-h{a.hidden_size}-l{a.num_layers}-f{a.intermediate_size}"
        f"-v{a.vocab_size}-{a.head.value}"
    )


def measured_call(
    kind: str, architecture: ModelArchitecture, strategy: ParallelStrategy
) -> MeasuredCall:
    """The key of a function call's corrections."""
    return MeasuredCall(kind=kind, model=model_name(architecture), strategy=str(strategy))


def measured_reallocation(architecture: ModelArchitecture) -> MeasuredCall:
    """The key of the corrections of a model's reallocations, whatever their layouts."""
    return MeasuredCall(kind="reallocate", model=model_name(architecture), strategy="")


def _entry(plain: Any) -> tuple[MeasuredCall, tuple[float, ...]]:
    kind, model, strategy, ratios = plain
    call = MeasuredCall(kind=str(kind), model=str(model), strategy=str(strategy))
    return call, _checked(float(ratio) for ratio in ratios)


def _checked(ratios: Iterable[float]) -> tuple[float, ...]:
    found = tuple(ratios)
    if not all(ratio > 0 and math.isfinite(ratio) for ratio in found):
        raise ValueError(f"ratios {found} must be positive")
    return found[-MOST_RATIOS:]
