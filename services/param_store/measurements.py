"""What is measured of every reallocation."""

from realloc.core.transfer import Traffic
from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.spans import Attributes, record
from services.param_store.orders import Reallocation
from services.param_store.phases import Phase, PhaseClock


def bound_ratio(traffic: Traffic) -> float:
    """Bytes that cross devices over the least that must; 1 is the best, also where none must."""
    if not traffic.cross_device_bound:
        return 1.0 + (traffic.cross_device_bytes > 0)
    return traffic.cross_device_bytes / traffic.cross_device_bound


def traffic_attributes(traffic: Traffic) -> Attributes:
    """What a span says of the bytes."""
    return {
        Attribute.MOVED_BYTES: traffic.total_bytes,
        Attribute.LOCAL_BYTES: traffic.local_bytes,
        Attribute.CROSS_DEVICE_BYTES: traffic.cross_device_bytes,
        Attribute.CROSS_NODE_BYTES: traffic.cross_node_bytes,
        Attribute.BOUND_RATIO: bound_ratio(traffic),
    }


def record_committed(model_id: str, done: Reallocation) -> None:
    """Seconds, bytes by kind, bandwidth and the ratio to the bound."""
    model: Attributes = {Attribute.MODEL_ID: model_id}
    traffic = done.traffic
    record(Metric.REALLOCATION_SECONDS, done.seconds, model)
    record(Metric.WEIGHT_VERSION, done.weight_version, model)
    by_kind = {
        "local": traffic.local_bytes,
        "cross_device": traffic.cross_device_bytes - traffic.cross_node_bytes,
        "cross_node": traffic.cross_node_bytes,
    }
    for kind, size in by_kind.items():
        record(Metric.REALLOCATED_BYTES, size, {**model, Attribute.BYTES_KIND: kind})
    if traffic.total_bytes:
        record(Metric.REALLOCATION_BOUND_RATIO, bound_ratio(traffic), model)
        if done.transfer_seconds > 0:
            bandwidth = traffic.total_bytes / done.transfer_seconds
            record(Metric.REALLOCATION_BANDWIDTH, bandwidth, model)


def record_phases(model_id: str, clock: PhaseClock) -> None:
    """Seconds of each phase that was left, and how it all ended."""
    for phase, seconds in clock.seconds.items():
        attributes: Attributes = {Attribute.MODEL_ID: model_id, Attribute.PHASE: phase.value}
        record(Metric.REALLOCATION_PHASE_SECONDS, seconds, attributes)
    if clock.phase in (Phase.COMMITTED, Phase.ABORTED):
        outcome: Attributes = {Attribute.MODEL_ID: model_id, Attribute.OUTCOME: clock.phase.value}
        record(Metric.REALLOCATIONS, 1, outcome)
