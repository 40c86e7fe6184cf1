"""The options of each call: meshes × strategies × choices, with what they cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from realloc.core.errors import InvalidInput
from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, estimate_call
from realloc.cost.choices import CallChoices, GradientReduction
from realloc.cost.hardware import Hardware
from realloc.cost.recalibration import measured_call
from realloc.dataflow.graph import CallKind, FunctionCall
from realloc.search.legality import illegal, interleaves
from realloc.search.strategies import strategies
from realloc.search.task import PlanTask

_MICRO_BATCH_SHARES = (1, 4)
"""Micro-batches of the experiment's most tokens and of a quarter of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOption:
    """One way to run a call."""

    call: str
    mesh: DeviceMesh
    strategy: ParallelStrategy
    micro_batch_tokens: int
    choices: CallChoices
    cost: CallCost
    """As the cost model alone predicts it."""
    correction: float = 1.0
    """Ratio of measured to predicted seconds of calls like this one."""

    @property
    def seconds(self) -> float:
        """Predicted seconds of the call within one iteration."""
        return self.cost.seconds * self.correction

    @property
    def notes(self) -> tuple[str, ...]:
        """What is chosen beside mesh, strategy and micro-batches, in words."""
        chosen = {"recompute": self.choices.recompute, "offload": self.choices.offload}
        return tuple(word for word, is_chosen in chosen.items() if is_chosen)


def options_of(task: PlanTask, call: FunctionCall) -> list[PlanOption]:
    """Every option of a call that is legal and fits a device by itself.

    Raises:
        InvalidInput: there is none; the reason of the nearest.
    """
    pin = task.pin_of(call)
    fixed = pin.strategy if pin else None
    meshes = [pin.mesh] if pin and pin.mesh else list(task.meshes())
    if fixed:
        meshes = [mesh for mesh in meshes if mesh.num_devices == fixed.num_ranks]
    found: list[PlanOption] = []
    reasons: list[tuple[int, str]] = []
    known: dict[tuple[int, str], list[PlanOption]] = {}
    for mesh in meshes:
        hardware = task.hardware_on(mesh)
        alike = mesh.num_devices, hardware.name
        if alike not in known:
            known[alike] = _on_mesh(task, call, mesh, fixed, hardware, reasons)
        found += [replace(option, mesh=mesh) for option in known[alike]]
    if not found:
        ranks = f" of the {fixed.num_ranks} devices of {fixed}" if fixed else ""
        nearest = f"there is no mesh{ranks} on the devices that may be used"
        if reasons:
            nearest = max(reasons, key=lambda reason: (reason[0] < 0, reason[0]))[1]
        raise InvalidInput.at(f"pins.{pin.call}" if pin else call.name, nearest)
    return found


def _on_mesh(
    task: PlanTask,
    call: FunctionCall,
    mesh: DeviceMesh,
    fixed: ParallelStrategy | None,
    hardware: Hardware,
    reasons: list[tuple[int, str]],
) -> list[PlanOption]:
    """The options on one mesh; why others are none goes to `reasons`, with the bytes they need."""
    room = task.usable_on(hardware)
    found = []
    for strategy in [fixed] if fixed else strategies(task, call, mesh.num_devices):
        if reason := illegal(task, call, strategy):
            reasons.append((0, reason))
            continue
        variants = list(_variants(task, call, mesh, strategy, hardware))
        if not variants:
            reason = "the micro-batches of a step must divide by the pipeline degree"
            reasons.append((0, f"{strategy}: {reason}"))
            continue
        fitting = [option for option in variants if option.cost.peak_bytes <= room]
        found += _useful(fitting)
        if not fitting:
            least = min(option.cost.peak_bytes for option in variants)
            reasons.append((-least, _too_large(room, strategy, least)))
    return found


def _variants(
    task: PlanTask,
    call: FunctionCall,
    mesh: DeviceMesh,
    strategy: ParallelStrategy,
    hardware: Hardware,
) -> Iterator[PlanOption]:
    base, architecture = task.workloads[call.name], task.architectures[call.model]
    correction = task.corrections.factor(measured_call(call.kind.value, architecture, strategy))
    free = task.rules.free_choices and call.kind is not CallKind.GENERATE
    for share in _MICRO_BATCH_SHARES if free else (1,):
        tokens = max(1, base.max_tokens_per_micro_batch // share)
        workload = replace(base, max_tokens_per_micro_batch=tokens)
        if not interleaves(workload, strategy):
            continue
        for choices in _choices(task, call, strategy) if free else (CallChoices(),):
            cost = estimate_call(
                call.kind,
                architecture,
                strategy,
                workload,
                hardware,
                choices=choices,
                memory_bytes=None if task.node_hardware else task.cluster.device_memory_bytes,
            )
            yield PlanOption(
                call=call.name,
                mesh=mesh,
                strategy=strategy,
                micro_batch_tokens=tokens,
                choices=choices,
                cost=cost,
                correction=correction,
            )


def _choices(
    task: PlanTask, call: FunctionCall, strategy: ParallelStrategy
) -> Iterator[CallChoices]:
    """Sequence parallelism wherever tensors are split: it costs no message more. The reduction
    is overlapped wherever there is one, for the same reason."""
    trains = call.kind is CallKind.TRAIN
    frozen = not task.graph.model(call.model).trains
    may_offload = not task.constraints.placement.keep_on_device and (trains or frozen)
    for recompute in (False, True) if trains else (False,):
        for offload in (False, True) if may_offload else (False,):
            yield CallChoices(
                recompute=recompute,
                offload=offload,
                sequence_parallel=strategy.tensor > 1,
                reduction=GradientReduction.OVERLAPPED,
            )


def _useful(variants: list[PlanOption]) -> list[PlanOption]:
    """Of variants on one mesh and strategy those that are faster or smaller than the others."""
    kept: list[PlanOption] = []
    for option in sorted(variants, key=lambda o: (o.cost.seconds, o.cost.peak_bytes)):
        cost = option.cost
        if all(
            cost.peak_bytes < other.cost.peak_bytes
            or cost.resident_bytes < other.cost.resident_bytes
            for other in kept
        ):
            kept.append(option)
    return kept


def _too_large(room: int, strategy: ParallelStrategy, needed: int) -> str:
    return (
        f"needs {needed / 2**30:.1f} GiB per device under {strategy} and a device has "
        f"{room / 2**30:.1f} GiB for it; raise tensor or pipeline parallelism, or "
        "add devices"
    )
