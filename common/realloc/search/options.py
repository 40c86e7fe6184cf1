"""The options of each call: meshes × strategies × micro-batches, with what they cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from realloc.core.errors import InvalidInput
from realloc.core.experiment import Experiment
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, Workload, estimate_call
from realloc.cost.choices import CallChoices
from realloc.cost.hardware import Hardware
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall
from realloc.search.constraints import PlanConstraints

_MICRO_BATCH_SHARES = (1, 4)
"""Micro-batches of the experiment's most tokens and of a quarter of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRules:
    """What the system that is to run the plan can do."""

    micro_batches_per_call: bool = True
    """A call may have micro-batches and recomputation of its own; else the experiment's
    micro-batches, without recomputation."""
    one_training_layout: bool = False
    """A model's calls on trainers share one layout: only generation may have another."""
    even_batches: bool = True
    """Rows must divide by the data ranks; else there need only be a row for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTask:
    """What to plan."""

    graph: DataflowGraph
    architectures: Mapping[str, ModelArchitecture]
    """By the model's role."""
    workloads: Mapping[str, Workload]
    """By the call's name."""
    cluster: Cluster
    hardware: Hardware
    constraints: PlanConstraints = field(default_factory=PlanConstraints)
    rules: SpaceRules = field(default_factory=SpaceRules)
    generation_devices: int = 0
    """Where generation is disjoint: it has the devices below this number, the other calls of
    its model those from it on."""

    @property
    def usable_bytes(self) -> int:
        """Of a device: without what is reserved, and the headroom."""
        room = self.cluster.device_memory_bytes - self.hardware.reserved_bytes
        return int(room * (1.0 - self.constraints.headroom))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOption:
    """One way to run a call."""

    call: str
    mesh: DeviceMesh
    strategy: ParallelStrategy
    micro_batch_tokens: int
    recompute: bool
    cost: CallCost


def workloads_of(
    experiment: Experiment,
    graph: DataflowGraph,
    *,
    prompt_tokens: float,
    mean_response_tokens: float = 0.0,
    even_batches: bool = True,
) -> dict[str, Workload]:
    """The work of every call of an experiment.

    Args:
        prompt_tokens: mean of a prompt, or of a whole row where nothing is generated.
        mean_response_tokens: 0 where every response is taken to reach the limit.
        even_batches: whether mini-batches must be of equal size.

    Raises:
        InvalidInput: the rollouts do not divide into the mini-batches.
    """
    generates = any(call.kind is CallKind.GENERATE for call in graph.calls)
    ppo, generation = experiment.ppo, experiment.generation
    rows = experiment.data.batch_size * (generation.samples_per_prompt if generates else 1)
    steps = ppo.mini_batches if generates else 1
    if even_batches and rows % steps:
        raise InvalidInput.at(
            "ppo.mini_batches",
            f"is {steps} and does not divide the {rows} rollouts of an iteration; change it, "
            "data.batch_size or generation.samples_per_prompt",
        )
    workload = Workload(
        num_rows=rows,
        prompt_tokens=prompt_tokens,
        response_tokens=generation.max_new_tokens if generates else 0,
        mean_response_tokens=mean_response_tokens if generates else 0.0,
        num_steps=steps * ppo.epochs if generates else 1,
        num_epochs=ppo.epochs if generates else 1,
        max_tokens_per_micro_batch=experiment.max_tokens_per_micro_batch,
        element_bytes=2 if experiment.dtype == "bfloat16" else 4,
    )
    _ = workload.lengths  # a mean beyond the limit is the user's mistake: say so now
    return {call.name: workload for call in graph.calls}


def options_of(task: PlanTask, call: FunctionCall) -> list[PlanOption]:
    """Every option of a call that is legal and fits a device by itself.

    Raises:
        InvalidInput: there is none; the reason of the nearest.
    """
    pin = task.constraints.pin_of(call.name)
    pairs = [(pin.mesh, pin.strategy)] if pin else list(_pairs(task))
    found: list[PlanOption] = []
    reasons: list[tuple[int, str]] = []
    for mesh, strategy in pairs:
        if reason := illegal(task, call, strategy):
            reasons.append((0, reason))
            continue
        variants = list(_variants(task, call, mesh, strategy))
        fitting = [o for o in variants if o.cost.peak_bytes <= task.usable_bytes]
        found += _useful(fitting)
        if not fitting:
            least = min(option.cost.peak_bytes for option in variants)
            reasons.append((-least, _too_large(task, call, strategy, least)))
    if not found:
        raise InvalidInput.at(
            f"pins.{call.name}" if pin else call.name,
            max(reasons, key=lambda r: (r[0] < 0, r[0]))[1] if reasons else "has no mesh",
        )
    return found


def illegal(task: PlanTask, call: FunctionCall, strategy: ParallelStrategy) -> str:
    """Why a strategy cannot be; empty where it can."""
    a, workload = task.architectures[call.model], task.workloads[call.name]
    most = task.constraints.max_tensor or task.cluster.devices_per_node
    rows = workload.num_rows
    if call.kind is CallKind.TRAIN:
        rows = rows * workload.num_epochs // workload.num_steps
    if a.num_attention_heads % strategy.tensor:
        return f"{a.num_attention_heads} attention heads do not split by {strategy}"
    if a.num_layers % strategy.pipeline:
        return f"{a.num_layers} layers do not split by {strategy}"
    if strategy.tensor > most:
        return f"{strategy}: the largest tensor degree here is {most}"
    if call.kind is CallKind.GENERATE and strategy.pipeline > 1:
        return f"{strategy}: generation has no pipeline; use p1"
    if call.kind is CallKind.GENERATE and strategy.context > 1:
        return f"{strategy}: generation has no context parallelism; leave c{strategy.context} out"
    if call.kind is not CallKind.GENERATE and a.num_key_value_heads % strategy.tensor:
        return f"{a.num_key_value_heads} key-value heads do not split by {strategy}"
    if rows < strategy.data:
        return f"{rows} rows are too few for the {strategy.data} data ranks of {strategy}"
    if task.rules.even_batches and rows % strategy.data:
        return (
            f"a batch of {rows} rows does not divide by the {strategy.data} data ranks of "
            f"{strategy}; change data.batch_size"
        )
    return ""


def _pairs(task: PlanTask) -> Iterator[tuple[DeviceMesh, ParallelStrategy]]:
    for mesh in task.constraints.meshes(task.cluster):
        for tensor in _divisors(mesh.num_devices):
            if tensor > task.cluster.devices_per_node:
                break
            for pipeline in _divisors(mesh.num_devices // tensor):
                data = mesh.num_devices // tensor // pipeline
                yield mesh, ParallelStrategy(data=data, tensor=tensor, pipeline=pipeline)


def _variants(
    task: PlanTask, call: FunctionCall, mesh: DeviceMesh, strategy: ParallelStrategy
) -> Iterator[PlanOption]:
    base = task.workloads[call.name]
    free = task.rules.micro_batches_per_call and call.kind is not CallKind.GENERATE
    for share in _MICRO_BATCH_SHARES if free else (1,):
        for recompute in (False, True) if free and call.kind is CallKind.TRAIN else (False,):
            tokens = max(1, base.max_tokens_per_micro_batch // share)
            workload = replace(base, max_tokens_per_micro_batch=tokens)
            cost = estimate_call(
                call.kind,
                task.architectures[call.model],
                strategy,
                workload,
                task.hardware,
                choices=CallChoices(recompute=recompute),
                memory_bytes=task.cluster.device_memory_bytes,
            )
            yield PlanOption(
                call=call.name,
                mesh=mesh,
                strategy=strategy,
                micro_batch_tokens=tokens,
                recompute=recompute,
                cost=cost,
            )


def _useful(variants: list[PlanOption]) -> list[PlanOption]:
    """Of variants on one mesh and strategy those that are faster or smaller than the others."""
    kept: list[PlanOption] = []
    for option in sorted(variants, key=lambda o: (o.cost.seconds, o.cost.peak_bytes)):
        if all(option.cost.peak_bytes < other.cost.peak_bytes for other in kept):
            kept.append(option)
    return kept


def _too_large(task: PlanTask, call: FunctionCall, strategy: ParallelStrategy, needed: int) -> str:
    return (
        f"needs {needed / 2**30:.1f} GiB per device under {strategy} and a device has "
        f"{task.usable_bytes / 2**30:.1f} GiB for it; raise tensor or pipeline parallelism, or "
        "add devices"
    )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
