"""Digests of what each target got last: what has not changed since need not move."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.param_store.digests import Digests, changed_tensors
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import ReallocationOrder
from services.param_store.plans import PlannedTransfer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    weight_version: int
    incarnations: Sequence[str]
    """Of the target's processes; one that restarted has lost its weights."""
    dtype: str
    digests: Digests


class Baselines:
    """One per target, in memory: whoever takes over begins with moving everything once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, PlacedLayout], _Baseline] = {}

    def changed(
        self, order: ReallocationOrder, model: Model, planned: PlannedTransfer, digests: Digests
    ) -> frozenset[str] | None:
        """Names of the canonical tensors that the target lacks; None for all.

        Args:
            digests: of what the sources have now, as the plan of everything would send it.
        """
        baseline = self._known.get(_key(order))
        placed = model.placed(order.target)
        if (
            baseline is None
            or placed is None
            or baseline.dtype != order.dtype
            or baseline.incarnations != order.target.incarnations
            or placed.weight_version != baseline.weight_version
        ):
            return None
        changed = changed_tensors(baseline.digests, digests, planned.plan)
        return None if len(changed) == len(planned.plan.canonical_tensors) else changed

    def remember(self, order: ReallocationOrder, digests: Digests | None) -> None:
        """A target was brought to a version; None where its digests were not asked for."""
        self._known.pop(_key(order), None)
        if digests is not None:
            self._known[_key(order)] = _Baseline(
                weight_version=order.weight_version,
                incarnations=order.target.incarnations,
                dtype=order.dtype,
                digests=digests,
            )

    def release(self, job_id: str) -> None:
        """Forget the targets of a job."""
        for key in [key for key in self._known if key[0] == job_id]:
            del self._known[key]


def _key(order: ReallocationOrder) -> tuple[str, str, PlacedLayout]:
    return order.job_id, order.model_id, replace(order.target, weight_version=0, incarnations=())
