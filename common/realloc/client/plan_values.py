"""A planned iteration as plain values for programs, and as a trace for ui.perfetto.dev."""

from typing import Any

from realloc.cost.simulator import Work, WorkKind
from realloc.search.front import PlanFront
from realloc.search.planning import PlannedIteration
from realloc.search.text import result_as_json


def plan_as_json(planned: PlannedIteration) -> dict[str, Any]:
    """The plan, what was proved, memory and timeline."""
    cluster = planned.space.task.cluster
    return {
        "seconds": planned.result.seconds,
        "lower_bound": planned.result.lower_bound,
        "gap": planned.result.gap,
        "heuristic_seconds": planned.heuristic_seconds,
        "speedup": planned.speedup,
        "num_devices": planned.num_devices,
        "device_seconds_per_sample": planned.cost,
        "reallocation_seconds": planned.plan.predicted_reallocation_seconds,
        "cluster": {
            "num_nodes": cluster.num_nodes,
            "devices_per_node": cluster.devices_per_node,
            "device_kind": cluster.device_kind,
            "device_memory_bytes": cluster.device_memory_bytes,
            "usable_bytes": planned.space.task.usable_bytes,
        },
        "placements": [
            {
                "call": option.call,
                "first_device": option.mesh.first_device,
                "num_devices": option.mesh.num_devices,
                "strategy": str(option.strategy),
                "micro_batch_tokens": option.micro_batch_tokens,
                "recompute": option.choices.recompute,
                "offload": option.choices.offload,
                "sequence_parallel": option.choices.sequence_parallel,
                "host_bytes": option.cost.host_bytes,
                "seconds": option.seconds,
                "resident_bytes": option.cost.resident_bytes,
                "active_bytes": option.cost.active_bytes,
            }
            for option in planned.chosen
        ],
        "device_peak_bytes": planned.device_bytes(),
        "timeline": [_work(work) for work in planned.timeline().works],
        "search": result_as_json(planned.result),
    }


def front_as_json(front: PlanFront) -> list[dict[str, Any]]:
    """A plan per point, without its timeline."""
    points = [plan_as_json(planned) for planned in front.plans]
    for point in points:
        del point["timeline"]
    return points


def _work(work: Work) -> dict[str, Any]:
    return {
        "kind": work.kind.value,
        "name": work.name,
        "iteration": work.iteration,
        "devices": [[mesh.first_device, mesh.num_devices] for mesh in work.meshes],
        "ready": work.ready,
        "start": work.start,
        "end": work.end,
    }


def plan_as_trace(planned: PlannedIteration) -> dict[str, Any]:
    """Chrome trace events: a process per node, a thread per device."""
    per_node = planned.space.task.cluster.devices_per_node
    events: list[dict[str, Any]] = []
    for device in range(planned.space.task.cluster.num_devices):
        where = {"pid": device // per_node, "tid": device}
        events.append(
            {"ph": "M", "name": "thread_name", "args": {"name": f"device {device}"}} | where
        )
        if device % per_node == 0:
            name = {"name": f"node {device // per_node}"}
            events.append({"ph": "M", "name": "process_name", "args": name} | where)
    for work in planned.timeline().works:
        for device in sorted({d for mesh in work.meshes for d in mesh.devices}):
            events.append(_event(work, device, per_node))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(work: Work, device: int, per_node: int) -> dict[str, Any]:
    moves = work.kind is WorkKind.REALLOCATION
    return {
        "ph": "X",
        "name": f"reallocate for {work.name}" if moves else work.name,
        "cat": work.kind.value,
        "pid": device // per_node,
        "tid": device,
        "ts": 1e6 * work.start,
        "dur": 1e6 * (work.end - work.start),
        "args": {"iteration": work.iteration},
    }
