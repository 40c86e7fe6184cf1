"""A first search: the cheapest placement of each model's calls, by the cost model.

Calls of one model on trainers share a placement, since its weights live in one training
layout; generation has a placement of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin, Experiment
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.model import ModelArchitecture
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, Workload, estimate_call, estimate_reallocation_seconds
from realloc.cost.hardware import Hardware
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningTask:
    """What to plan."""

    experiment: Experiment
    graph: DataflowGraph
    architectures: dict[str, ModelArchitecture]
    """By the model's role."""
    cluster: Cluster
    hardware: Hardware
    mean_prompt_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    mesh: DeviceMesh
    strategy: ParallelStrategy


def plan_experiment(task: PlanningTask) -> ExecutionPlan:
    """The plan with the least sum of call seconds.

    Raises:
        InvalidInput: a pin is not legal, or a call fits on no mesh of the cluster.
    """
    placements: list[CallPlacement] = []
    for calls in groups(task.graph):
        option = _choose(task, calls)
        placements += [_placement(task, call, option) for call in calls]
    return with_totals(task, placements)


def estimate_plan(task: PlanningTask, plan: ExecutionPlan) -> ExecutionPlan:
    """The same plan with its predictions.

    Raises:
        InvalidInput: a placement is not legal.
    """
    placements = []
    for call in task.graph.placed_calls():
        given = plan.placement(call.name)
        option = _Option(mesh=given.mesh, strategy=given.strategy)
        if problem := _illegal(task, call, option):
            raise InvalidInput.at(f"plan.{call.name}", problem)
        placements.append(_placement(task, call, option))
    return with_totals(task, placements)


def with_totals(task: PlanningTask, placements: Sequence[CallPlacement]) -> ExecutionPlan:
    """A plan whose iteration runs its calls one after the other."""
    moves = 0.0
    for call in task.graph.placed_calls():
        if call.kind is CallKind.GENERATE:
            replicas = next(p for p in placements if p.call == call.name).strategy.data
            moves = estimate_reallocation_seconds(
                task.architectures[call.model], replicas, task.hardware
            )
    in_iteration = {call.name for call in task.graph.calls}
    seconds = sum(p.predicted_seconds for p in placements if p.call in in_iteration)
    generates = any(call.kind is CallKind.GENERATE for call in task.graph.calls)
    return ExecutionPlan(
        placements=tuple(placements),
        predicted_seconds=seconds + moves * generates,
        predicted_reallocation_seconds=moves,
    )


def groups(graph: DataflowGraph) -> list[tuple[FunctionCall, ...]]:
    """Calls that share a placement: those of one model on trainers; each generation alone."""
    groups: dict[tuple[str, bool], list[FunctionCall]] = {}
    for call in graph.placed_calls():
        groups.setdefault((call.model, call.kind is CallKind.GENERATE), []).append(call)
    return [tuple(calls) for calls in groups.values()]


def _choose(task: PlanningTask, calls: tuple[FunctionCall, ...]) -> _Option:
    pins = _pins(task.experiment, calls)
    if pins:
        option = _Option(mesh=pins[0].mesh, strategy=pins[0].strategy)
        for pin in pins[1:]:
            if (pin.mesh, pin.strategy) != (option.mesh, option.strategy):
                raise InvalidInput.at(
                    "pins",
                    f"{pin.call} and {pins[0].call} are calls of one model on trainers and need "
                    "the same mesh and strategy",
                )
        for call in calls:
            if problem := _illegal(task, call, option):
                raise InvalidInput.at(f"pins.{pins[0].call}", problem)
        return option
    legal = [o for o in _options(task, calls[0]) if not any(_illegal(task, c, o) for c in calls)]
    if not legal:
        raise InvalidInput.at("plan", _does_not_fit(task, calls))
    return min(legal, key=lambda o: sum(_cost(task, call, o).seconds for call in calls))


def _pins(experiment: Experiment, calls: Sequence[FunctionCall]) -> list[CallPin]:
    names = {call.name for call in calls}
    return [pin for pin in experiment.pins if pin.call in names]


def _options(task: PlanningTask, call: FunctionCall) -> Iterator[_Option]:
    for mesh in task.cluster.meshes():
        for tensor in _divisors(mesh.num_devices):
            for pipeline in _divisors(mesh.num_devices // tensor):
                data = mesh.num_devices // tensor // pipeline
                strategy = ParallelStrategy(data=data, tensor=tensor, pipeline=pipeline)
                yield _Option(mesh=mesh, strategy=strategy)


def _illegal(task: PlanningTask, call: FunctionCall, option: _Option) -> str:
    """Why a placement cannot be; empty where it can."""
    architecture, strategy = task.architectures[call.model], option.strategy
    if not strategy.is_plain:
        return f"{strategy}: jobs split models by data, tensor and pipeline only"
    if architecture.num_attention_heads % strategy.tensor:
        return f"{architecture.num_attention_heads} attention heads do not split by {strategy}"
    if architecture.num_layers % strategy.pipeline:
        return f"{architecture.num_layers} layers do not split by {strategy}"
    if call.kind is CallKind.GENERATE:
        if strategy.pipeline > 1:
            return f"{strategy}: generation has no pipeline; use p1"
        if strategy.tensor > task.cluster.devices_per_node:
            return f"{strategy}: a replica must fit into one node"
    elif architecture.num_key_value_heads % strategy.tensor:
        return f"{architecture.num_key_value_heads} key-value heads do not split by {strategy}"
    peak = _cost(task, call, option).peak_bytes
    if peak > task.cluster.device_memory_bytes:
        return (
            f"{call.name} needs {peak / 2**30:.2f} GiB per device under {strategy} and a device "
            f"has {task.cluster.device_memory_bytes / 2**30:.2f} GiB; raise tensor or pipeline "
            "parallelism"
        )
    return ""


def _does_not_fit(task: PlanningTask, calls: Sequence[FunctionCall]) -> str:
    """Why no option is legal: the reason of the one that comes nearest."""
    options = list(_options(task, calls[0]))
    nearest = min(options, key=lambda o: max(_cost(task, call, o).peak_bytes for call in calls))
    reasons = [reason for call in calls if (reason := _illegal(task, call, nearest))]
    return f"{calls[0].name} fits on no mesh of the cluster: {'; '.join(reasons)}"


def _placement(task: PlanningTask, call: FunctionCall, option: _Option) -> CallPlacement:
    cost = _cost(task, call, option)
    return CallPlacement(
        call=call.name,
        mesh=option.mesh,
        strategy=option.strategy,
        predicted_seconds=cost.seconds,
        predicted_peak_bytes=cost.peak_bytes,
    )


def _cost(task: PlanningTask, call: FunctionCall, option: _Option) -> CallCost:
    experiment = task.experiment
    generates = any(each.kind is CallKind.GENERATE for each in task.graph.calls)
    samples = experiment.generation.samples_per_prompt if generates else 1
    steps = experiment.ppo.mini_batches * experiment.ppo.epochs if generates else 1
    workload = Workload(
        num_rows=experiment.data.batch_size * samples,
        prompt_tokens=task.mean_prompt_tokens,
        response_tokens=experiment.generation.max_new_tokens if generates else 0,
        num_steps=steps,
        num_epochs=experiment.ppo.epochs if generates else 1,
        max_tokens_per_micro_batch=experiment.max_tokens_per_micro_batch,
        element_bytes=2 if experiment.dtype == "bfloat16" else 4,
    )
    return estimate_call(
        call.kind,
        task.architectures[call.model],
        option.strategy,
        workload,
        task.hardware,
        memory_bytes=task.cluster.device_memory_bytes,
    )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
