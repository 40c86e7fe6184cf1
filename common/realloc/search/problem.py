"""The plan search problem as data: numpy arrays, saved as one ``.npz`` file.

Shape letters: C calls, E edges, O options over all calls, L layouts of one model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import raise_problems
from realloc.core.mesh import DeviceMesh
from realloc.cost.simulator import (
    PlacedCall,
    SimulationRules,
    Timeline,
    peak_bytes,
    simulate,
)
from realloc.dataflow.graph import CallKind
from realloc.search.problem_checks import check_problem

KINDS = (CallKind.GENERATE, CallKind.INFERENCE, CallKind.TRAIN)
"""Kind of a call by its number in `SearchProblem.call_kind`."""

TRAIN = KINDS.index(CallKind.TRAIN)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchProblem:
    """Which options each call has, what they cost, and what moving weights costs.

    The arrays are checked and made read-only; all problems are reported at once.

    Raises:
        InvalidInput: an array contradicts itself or another one.
    """

    num_devices: int
    device_memory_bytes: int
    call_names: tuple[str, ...]
    """[C]"""
    call_model: Ints
    """[C], index of the call's model."""
    call_kind: Ints
    """[C], 0 generate, 1 inference, 2 train."""
    edges: Ints
    """[E, 2], call → call that waits for it within an iteration."""
    option_call: Ints
    """[O], the call that the option belongs to."""
    option_first_device: Ints
    option_num_devices: Ints
    option_seconds: Floats
    option_resident_bytes: Ints
    """[O], bytes on each device while the plan is in force."""
    option_active_bytes: Ints
    """[O], further bytes on each device while the call runs."""
    option_layout: Ints
    """[O], layout index within the model; −1 where no weights move."""
    realloc_seconds: Mapping[int, Floats]
    """Trained model → [L, L] seconds; row = from layout, column = to layout."""

    def __post_init__(self) -> None:
        for name in INT_ARRAYS:
            object.__setattr__(self, name, _frozen(getattr(self, name), np.int64))
        edges = self.edges.reshape(0, 2) if self.edges.size == 0 else self.edges
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "option_seconds", _frozen(self.option_seconds, np.float64))
        matrices = {int(m): _frozen(a, np.float64) for m, a in self.realloc_seconds.items()}
        object.__setattr__(self, "realloc_seconds", matrices)
        raise_problems(check_problem(self))

    @property
    def num_calls(self) -> int:
        return len(self.call_names)

    @property
    def num_options(self) -> int:
        return len(self.option_call)

    def options_of(self, call: int) -> Ints:
        """Indices of a call's options, ascending."""
        return np.flatnonzero(self.option_call == call)

    def train_call(self, call: int) -> int:
        """The train call of a call's model; −1 where the model is frozen."""
        same = (self.call_model == self.call_model[call]) & (self.call_kind == TRAIN)
        found = np.flatnonzero(same)
        return int(found[0]) if len(found) else -1

    def num_plans(self) -> float:
        """How many plans there are, feasible or not."""
        return float(np.prod([float(len(self.options_of(c))) for c in range(self.num_calls)]))

    def place(self, options: Sequence[int]) -> tuple[PlacedCall, ...]:
        """The calls with their chosen options, for the simulator."""
        return tuple(
            PlacedCall(
                name=self.call_names[call],
                model=int(self.call_model[call]),
                kind=KINDS[int(self.call_kind[call])],
                devices=DeviceMesh(
                    first_device=int(self.option_first_device[option]),
                    num_devices=int(self.option_num_devices[option]),
                ),
                seconds=float(self.option_seconds[option]),
                resident_bytes=int(self.option_resident_bytes[option]),
                active_bytes=int(self.option_active_bytes[option]),
                layout=int(self.option_layout[option]),
            )
            for call, option in enumerate(options)
        )

    def simulate(self, options: Sequence[int], rules: SimulationRules | None = None) -> Timeline:
        """The exact timeline of a plan, whether it fits the memory or not."""
        edges = [(int(a), int(b)) for a, b in self.edges]
        return simulate(
            self.place(options), edges, self._seconds_between, rules or SimulationRules()
        )

    def peak_bytes(self, options: Sequence[int]) -> int:
        """The largest peak over the devices."""
        return max(peak_bytes(self.place(options), self.num_devices))

    def _seconds_between(self, model: int, source: int, target: int) -> float:
        return float(self.realloc_seconds[model][source, target])


INT_ARRAYS = (
    "call_model",
    "call_kind",
    "edges",
    "option_call",
    "option_first_device",
    "option_num_devices",
    "option_resident_bytes",
    "option_active_bytes",
    "option_layout",
)
"""Names of the int64 arrays."""


def _frozen(values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array
