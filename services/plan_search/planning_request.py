"""From what a request says to what is searched."""

from dataclasses import dataclass, field, replace

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin, Experiment
from realloc.core.mesh import Cluster
from realloc.core.model import ModelArchitecture
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.cost.calls import estimate_reallocation_seconds
from realloc.cost.hardware import Hardware
from realloc.cost.recalibration import Corrections
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall
from realloc.search.constraints import PlanConstraints
from realloc.search.options import options_of
from realloc.search.task import PlanTask, SpaceRules, workloads_of

_RULES = SpaceRules(free_choices=False, one_training_layout=True, even_batches=False)
"""What the scheduler and the trainers can execute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningRequest:
    """What to plan."""

    experiment: Experiment
    graph: DataflowGraph
    architectures: dict[str, ModelArchitecture]
    """By the model's role."""
    cluster: Cluster
    hardware: Hardware
    """Of the cluster's devices."""
    mean_prompt_tokens: float
    corrections: Corrections = field(default_factory=Corrections)

    def task(self, plan: ExecutionPlan | None = None) -> PlanTask:
        """What to search; or, where a plan is given, that plan alone."""
        pins = self.experiment.pins
        if plan is not None:
            pins = tuple(
                CallPin(call=p.call, mesh=p.mesh, strategy=p.strategy) for p in plan.placements
            )
        return PlanTask(
            graph=self.graph,
            architectures=self.architectures,
            workloads=workloads_of(
                self.experiment,
                self.graph,
                prompt_tokens=self.mean_prompt_tokens,
                even_batches=False,
            ),
            cluster=self.cluster,
            hardware=self.hardware,
            corrections=self.corrections,
            constraints=PlanConstraints(pins=pins, placement=self.experiment.placement),
            rules=_RULES,
        )


def with_evaluation(task: PlanTask, plan: ExecutionPlan) -> ExecutionPlan:
    """The plan with a place for the call that only evaluates, where the graph has one.

    It runs while nothing else does, so that it has the fastest place on which it fits.

    Raises:
        InvalidInput: it fits nowhere, or its pin is not legal.
    """
    calls = [call for call in task.graph.placed_calls() if call not in task.graph.calls]
    if not calls:
        return plan
    placements = [_fastest(task, call) for call in calls]
    moves, model_moves = plan.predicted_reallocation_seconds, plan.model_reallocation_seconds
    for call, placement in zip(calls, placements, strict=True):
        if call.kind is CallKind.GENERATE and not moves:
            architecture = task.architectures[call.model]
            replicas = placement.strategy.data
            model_moves = estimate_reallocation_seconds(architecture, replicas, task.hardware)
            moves = model_moves * task.move_correction(call.model)
    return replace(
        plan,
        placements=(*plan.placements, *placements),
        predicted_reallocation_seconds=moves,
        model_reallocation_seconds=model_moves,
    )


def _fastest(task: PlanTask, call: FunctionCall) -> CallPlacement:
    option = min(options_of(task, call), key=lambda option: option.seconds)
    return CallPlacement(
        call=call.name,
        mesh=option.mesh,
        strategy=option.strategy,
        predicted_seconds=option.seconds,
        predicted_peak_bytes=option.cost.peak_bytes,
        model_seconds=option.cost.seconds,
    )


def check_placements(graph: DataflowGraph, plan: ExecutionPlan) -> None:
    """Raise where a given plan does not place exactly the calls of the graph.

    Raises:
        InvalidInput: calls that are missing, unknown or placed twice.
    """
    placed = [placement.call for placement in plan.placements]
    wanted = [call.name for call in graph.placed_calls()]
    if sorted(placed) != sorted(wanted):
        raise InvalidInput.at(
            "plan.placements", f"are of {', '.join(placed)}; the calls are {', '.join(wanted)}"
        )
