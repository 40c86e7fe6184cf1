"""Execution plans: a mesh and a strategy for every function call."""

from dataclasses import dataclass

from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlacement:
    """Where and how one function call runs."""

    call: str
    """Name of the function call in the dataflow graph."""
    mesh: DeviceMesh
    strategy: ParallelStrategy
    predicted_seconds: float
    """Seconds of the call within one iteration."""
    predicted_peak_bytes: int = 0
    """Largest memory that one device of the mesh needs for the call."""
    model_seconds: float = 0.0
    """What the cost model alone predicts, not corrected by what earlier calls have taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """A placement for each call of a graph, with what it is predicted to cost."""

    placements: tuple[CallPlacement, ...]
    predicted_seconds: float
    """Seconds per iteration, reallocations included."""
    predicted_reallocation_seconds: float = 0.0
    """Seconds of one reallocation of the trained models to their other layouts."""
    model_reallocation_seconds: float = 0.0
    """What the cost model alone predicts for it."""

    def placement(self, call: str) -> CallPlacement:
        """The placement of a call, by its name."""
        return next(placement for placement in self.placements if placement.call == call)
