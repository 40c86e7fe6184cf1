"""Where a job's calls and models lie, as its plan says."""

from realloc.core.layout import Layout, LayoutKind
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.dataflow.graph import CallKind, DataflowGraph
from services.scheduler.shards import replica_devices


def trainer_devices(graph: DataflowGraph, plan: ExecutionPlan) -> tuple[int, ...]:
    """Devices whose trainers the job needs, ascending."""
    return tuple(
        sorted(
            {
                device
                for call in graph.placed_calls()
                if call.kind is not CallKind.GENERATE
                for device in plan.placement(call.name).mesh.devices
            }
        )
    )


def generation_devices(graph: DataflowGraph, plan: ExecutionPlan) -> tuple[int, ...]:
    """First device of each generation replica that the job needs, ascending."""
    devices: set[int] = set()
    for call in graph.placed_calls():
        if call.kind is CallKind.GENERATE:
            placement = plan.placement(call.name)
            devices |= set(replica_devices(placement.mesh, placement.strategy))
    return tuple(sorted(devices))


def model_placement(graph: DataflowGraph, plan: ExecutionPlan, model_id: str) -> CallPlacement:
    """The one placement of a model's calls on trainers."""
    return next(
        plan.placement(call.name)
        for call in graph.placed_calls()
        if call.model == model_id and call.kind is not CallKind.GENERATE
    )


def model_layout(graph: DataflowGraph, plan: ExecutionPlan, model_id: str) -> Layout:
    """The one layout of a model on trainers."""
    placement = model_placement(graph, plan, model_id)
    return Layout(
        kind=LayoutKind.MEGATRON,
        strategy=placement.strategy,
        devices=tuple(placement.mesh.devices),
    )
