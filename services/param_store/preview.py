"""What a reallocation would take, without moving anything."""

from dataclasses import dataclass

from realloc.core.errors import raise_problems
from realloc.core.transfer import Traffic
from realloc.cost.hardware import Hardware
from services.param_store.model import PlacedLayout
from services.param_store.orders import NO_TRAFFIC, check_devices, dtype_problems
from services.param_store.participants import Processes
from services.param_store.plans import Plans
from services.param_store.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan's figures."""

    traffic: Traffic
    num_endpoints: int
    num_rounds: int
    predicted_seconds: float


class Previews:
    """Plans reallocations for those who only want to know."""

    def __init__(
        self, *, registry: Registry, processes: Processes, plans: Plans, hardware: Hardware
    ) -> None:
        self._registry = registry
        self._processes = processes
        self._plans = plans
        self._hardware = hardware

    async def preview(
        self, job_id: str, model_id: str, target: PlacedLayout, dtype: str
    ) -> Preview:
        """Bytes, bounds and predicted seconds; the same checks as the reallocation itself.

        Raises:
            InvalidInput, NotFound, Conflict: as `Reallocator.reallocate`, for what can be seen
                without the shards.
        """
        raise_problems(dtype_problems(dtype))
        model = await self._registry.get(job_id, model_id)
        check_devices(model, target)
        nodes = self._processes.nodes(model, target)
        if model.source.same_place(target):
            return Preview(traffic=NO_TRAFFIC, num_endpoints=0, num_rounds=0, predicted_seconds=0.0)
        planned = await self._plans.plan(model, target, dtype=dtype, node_of=nodes)
        plan = planned.plan
        return Preview(
            traffic=plan.traffic,
            num_endpoints=len(plan.endpoints),
            num_rounds=plan.programs[0].num_rounds,
            predicted_seconds=predict_seconds(
                plan.traffic, len(target.layout.devices), self._hardware
            ),
        )


def predict_seconds(traffic: Traffic, num_devices: int, hardware: Hardware) -> float:
    """Seconds by the busiest link, and of the copies within devices.

    Bytes that stay on their device are read and written at the speed of memory, and so are all
    once more when they are committed; both are spread evenly over the target's devices.

    Args:
        num_devices: of the target.
    """
    link = hardware.network if traffic.cross_node_bytes else hardware.node_link
    busiest = max(traffic.busiest_send_bytes, traffic.busiest_receive_bytes)
    memory = (traffic.local_bytes + traffic.total_bytes) / num_devices
    return (
        hardware.call_overhead_seconds
        + link.latency_seconds
        + max(
            busiest / link.bytes_per_second,
            traffic.inside_send_bytes / hardware.node_link.bytes_per_second,
        )
        + 2 * memory / hardware.memory_bytes_per_second
    )
