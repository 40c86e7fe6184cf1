"""Refuses a plan that does not fit before anything is launched, with what needs how much."""

from collections.abc import Iterator, Mapping

from realloc.core.errors import InvalidInput
from realloc.core.mesh import Cluster
from realloc.core.plan import ExecutionPlan
from realloc.cost.calls import CallCost, estimate_call
from realloc.cost.hardware import Hardware, hardware_of
from realloc.cost.memory_parts import MemoryParts, memory_table
from realloc.dataflow.graph import CallKind, FunctionCall
from realloc.search.task import workloads_of
from services.scheduler.admission import Admission

_STAGING_BYTES = 256 << 20
"""Most bytes of a process's buffers for reallocations (the services' default)."""


def check_memory(admission: Admission, plan: ExecutionPlan, cluster: Cluster) -> None:
    """Compare what each device of a plan needs with what it has.

    A device holds every model that lies on it, and runs one call at a time.

    Raises:
        InvalidInput: a device needs more; the message has the table of its calls.
    """
    hardware = hardware_of(cluster.device_kind)
    costs = _costs(admission, plan, cluster, hardware)
    for device in sorted({d for p in plan.placements for d in p.mesh.devices}):
        calls = [
            call
            for call in admission.graph.placed_calls()
            if device in plan.placement(call.name).mesh.devices
        ]
        own = {call.name: costs[call.name] for call in calls}
        base = _beside(admission, calls, own, hardware)
        needed = base.total + _held(calls, own) + max(c.active_bytes for c in own.values())
        if needed > cluster.device_memory_bytes - hardware.reserved_bytes:
            parts = {name: cost.parts for name, cost in own.items()} | {"processes": base}
            raise InvalidInput.at(
                "cluster.device_memory_bytes",
                f"is {cluster.device_memory_bytes / 2**20:,.0f} MiB, of which "
                f"{hardware.reserved_bytes / 2**20:,.0f} are reserved, and device {device} needs "
                f"{needed / 2**20:,.0f} MiB; raise tensor or pipeline degrees, lower "
                "max_tokens_per_micro_batch, or add devices:\n" + memory_table(parts),
            )


def _costs(
    admission: Admission, plan: ExecutionPlan, cluster: Cluster, hardware: Hardware
) -> Mapping[str, CallCost]:
    workloads = workloads_of(
        admission.experiment,
        admission.graph,
        prompt_tokens=sum(admission.data.lengths) / admission.data.num_rows,
        even_batches=False,
    )
    architectures = {model.model_id: model.architecture for model in admission.models}
    any_work = next(iter(workloads.values()))
    return {
        call.name: estimate_call(
            call.kind,
            architectures[call.model],
            plan.placement(call.name).strategy,
            workloads.get(call.name, any_work),
            hardware,
            memory_bytes=cluster.device_memory_bytes,
        )
        for call in admission.graph.placed_calls()
    }


def _held(calls: list[FunctionCall], costs: Mapping[str, CallCost]) -> int:
    """Bytes of the models on a device: each once on a trainer, and once more on an engine."""
    largest: dict[tuple[str, bool], int] = {}
    for call in calls:
        key = call.model, call.kind is CallKind.GENERATE
        largest[key] = max(largest.get(key, 0), costs[call.name].resident_bytes)
    return sum(largest.values())


def _beside(
    admission: Admission,
    calls: list[FunctionCall],
    costs: Mapping[str, CallCost],
    hardware: Hardware,
) -> MemoryParts:
    """Processes of a device and their buffers, whatever runs."""
    kinds = {call.kind is CallKind.GENERATE for call in calls}
    process = sum(
        hardware.engine_process_bytes if generates else hardware.trainer_process_bytes
        for generates in kinds
    )
    moved = [costs[call.name].parts.weights for call in _moved(admission, calls)]
    return MemoryParts(process=process, staging=min(_STAGING_BYTES, max(moved, default=0)))


def _moved(admission: Admission, calls: list[FunctionCall]) -> Iterator[FunctionCall]:
    """Calls of models that generate: their weights are reallocated."""
    graph = admission.graph
    models = {call.model for call in graph.placed_calls() if call.kind is CallKind.GENERATE}
    return (call for call in calls if call.model in models)
