"""What is to be planned: calls, models, work, devices, and what the user fixes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin, Experiment
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.model import ModelArchitecture
from realloc.cost.calls import Workload
from realloc.cost.hardware import Hardware
from realloc.cost.recalibration import Corrections, measured_reallocation
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall
from realloc.search.constraints import PlanConstraints
from realloc.search.slowest import slowest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRules:
    """What the system that is to run the plan can do."""

    free_choices: bool = True
    """A call may have micro-batches, recomputation, sequence, context and expert parallelism, an
    interleaved schedule, an overlapped reduction and offloading of its own. Else it has the
    experiment's micro-batches on data, tensor and pipeline ranks, and nothing else."""
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
    """Of every device; of the first node's where nodes differ."""
    node_hardware: tuple[Hardware, ...] = ()
    """Of each node, where nodes differ."""
    corrections: Corrections = field(default_factory=Corrections)
    """What earlier calls have taken, against what the cost model predicts."""
    constraints: PlanConstraints = field(default_factory=PlanConstraints)
    rules: SpaceRules = field(default_factory=SpaceRules)
    device_limit: int = 0
    """Only devices below this number are used; 0 for all."""
    generation_devices: int = 0
    """Where generation is disjoint: it has the devices below this number, the other calls of
    its model those from it on."""

    @property
    def usable_bytes(self) -> int:
        """Of the largest device, without what is reserved for no tensor and the headroom."""
        return max(self.usable_on(kind) for kind in self.node_hardware or (self.hardware,))

    def usable_on(self, hardware: Hardware) -> int:
        """Usable bytes of a device of one kind."""
        memory = self.cluster.device_memory_bytes
        if self.node_hardware:
            memory = hardware.memory_bytes
        room = memory - hardware.reserved_bytes
        return int(room * (1.0 - self.constraints.placement.headroom))

    def hardware_on(self, mesh: DeviceMesh) -> Hardware:
        """What the devices of a mesh can do together: as much as the least of them."""
        if not self.node_hardware:
            return self.hardware
        first = self.cluster.node_of(mesh.first_device)
        last = self.cluster.node_of(mesh.devices[-1])
        return slowest_of(self.node_hardware[first : last + 1])

    def meshes(self) -> tuple[DeviceMesh, ...]:
        """Meshes worth trying."""
        meshes = self.constraints.meshes(self.cluster)
        limit = self.device_limit or self.cluster.num_devices
        return tuple(mesh for mesh in meshes if mesh.devices[-1] < limit)

    def move_correction(self, model: str) -> float:
        """Ratio of measured to predicted seconds of a model's reallocations."""
        return self.corrections.factor(measured_reallocation(self.architectures[model]))

    def pin_of(self, call: FunctionCall) -> CallPin | None:
        """What is fixed for a call, by its own pin or by those of calls that share its layout.

        Raises:
            InvalidInput: two of these pins differ.
        """
        sharing = [call.name]
        if self.rules.one_training_layout and call.kind is not CallKind.GENERATE:
            sharing = [
                other.name
                for other in self.graph.placed_calls()
                if other.model == call.model and other.kind is not CallKind.GENERATE
            ]
        return _merged([pin for pin in self.constraints.pins if pin.call in sharing])


def _merged(pins: list[CallPin]) -> CallPin | None:
    """One pin that fixes what any of them fixes."""
    if not pins:
        return None
    meshes = {pin.mesh for pin in pins if pin.mesh}
    strategies = {pin.strategy for pin in pins if pin.strategy}
    if len(meshes) > 1 or len(strategies) > 1:
        names = " and ".join(pin.call for pin in pins)
        raise InvalidInput.at(
            "pins",
            f"{names} are calls of one model on trainers and need the same mesh and strategy",
        )
    return CallPin(
        call=pins[0].call,
        mesh=next(iter(meshes), None),
        strategy=next(iter(strategies), None),
    )


def workloads_of(
    experiment: Experiment,
    graph: DataflowGraph,
    *,
    prompt_tokens: float,
    mean_response_tokens: float = 0.0,
    even_batches: bool = True,
) -> dict[str, Workload]:
    """The work of every call of an experiment, an evaluation of its own included.

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
    return {call.name: workload for call in graph.placed_calls()}
