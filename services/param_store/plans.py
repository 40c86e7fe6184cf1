"""Transfer plans between placed layouts, made once per pair and kept."""

import asyncio
import json
from collections import OrderedDict
from dataclasses import replace

from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, TransferPlan
from realloc.reallocation.planner import plan_transfer
from services.param_store.model import Model, PlacedLayout


class Plans:
    """A bounded cache in front of the planner; planning runs beside the event loop."""

    def __init__(self, max_cached: int) -> None:
        self._max_cached = max_cached
        self._plans: OrderedDict[tuple[object, ...], TransferPlan] = OrderedDict()

    async def plan(
        self, model: Model, target: PlacedLayout, *, dtype: str, node_of: dict[int, int]
    ) -> TransferPlan:
        """How the target gets the weights of the model's source layout.

        Args:
            node_of: node of each device.

        Raises:
            InvalidInput: an engine cannot cut this model so.
        """
        architecture = ModelArchitecture.from_hf_config(json.loads(model.hf_config), model.head)
        architecture = architecture.with_head(model.head)
        key = (architecture, replace(model.source, weight_version=0), target.layout, target.shards)
        if key not in self._plans:
            self._plans[key] = await asyncio.to_thread(
                plan_transfer,
                architecture,
                model.source.layout,
                target.layout,
                source_endpoints=endpoints(model.source, node_of),
                destination_endpoints=endpoints(target, node_of),
                dtype=dtype,
            )
        self._plans.move_to_end(key)
        while len(self._plans) > self._max_cached:
            self._plans.popitem(last=False)
        return self._plans[key]


def endpoints(placed: PlacedLayout, node_of: dict[int, int]) -> tuple[Endpoint, ...]:
    """The end of each rank; ranks that share a process are told apart by their number."""
    names: list[str] = []
    for shard in placed.shards:
        seen = sum(name.split("/")[0] == shard for name in names)
        names.append(f"{shard}/{seen}" if seen or placed.shards.count(shard) > 1 else shard)
    return tuple(
        Endpoint(name=name, device=device, node=node_of[device])
        for name, device in zip(names, placed.layout.devices, strict=True)
    )
