"""Dataflow graphs: the function calls of one iteration and what flows between them."""

from dataclasses import dataclass
from enum import Enum

from realloc.core.model import Head


class CallKind(Enum):
    """What a function call does with its model."""

    GENERATE = "generate"
    INFERENCE = "inference"
    TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCall:
    """One kind of work of one model."""

    name: str
    """Unique within the graph: ``actor_gen``, ``critic_train``."""
    model: str
    """Role of the model: ``actor``, ``critic``, ``ref``, ``reward``."""
    kind: CallKind
    work: str
    """Training: the loss; inference: ``logprobs``, ``values`` or ``score``; else empty."""
    inputs: tuple[str, ...] = ()
    """Fields of the batch that the call reads."""
    outputs: tuple[str, ...] = ()
    """Fields that the call adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphModel:
    """A model of the graph."""

    model_id: str
    head: Head
    trains: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DataflowGraph:
    """The calls of an iteration, in an order in which they could run one by one."""

    name: str
    models: tuple[GraphModel, ...]
    calls: tuple[FunctionCall, ...]
    evaluation: FunctionCall | None = None
    """The call that evaluates; one of `calls`, or one that only evaluates."""

    def __post_init__(self) -> None:
        made: set[str] = set()
        for call in self.calls:
            missing = set(call.inputs) - made
            assert not missing, f"{call.name} reads {sorted(missing)}, which no call before makes"
            made |= set(call.outputs)

    def predecessors(self, call: FunctionCall) -> tuple[FunctionCall, ...]:
        """The calls whose outputs a call reads."""
        return tuple(other for other in self.calls if set(other.outputs) & set(call.inputs))

    def placed_calls(self) -> tuple[FunctionCall, ...]:
        """Every call that needs devices, an evaluation of its own included."""
        extra = () if self.evaluation in (None, *self.calls) else (self.evaluation,)
        return self.calls + tuple(call for call in extra if call is not None)

    def model(self, model_id: str) -> GraphModel:
        """A model by its role."""
        return next(model for model in self.models if model.model_id == model_id)
