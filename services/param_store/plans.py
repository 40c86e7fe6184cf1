"""Transfer plans between placed layouts, made once per pair and kept."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, ExpectedParameters, ParameterSpec, TransferPlan
from realloc.reallocation.layouts.provider import local_parameters, named_problems, provider_of
from realloc.reallocation.overlaps import overlapping_parameters
from realloc.reallocation.planner import plan_transfer
from services.param_store.model import Model, PlacedLayout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedTransfer:
    """A plan, and what each of its endpoints must hold."""

    plan: TransferPlan
    expected: tuple[ExpectedParameters, ...]
    """Per endpoint of the plan."""
    num_tensors: int
    """Canonical tensors that move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """All that a plan depends on."""

    architecture: ModelArchitecture
    source: PlacedLayout
    target: PlacedLayout
    nodes: tuple[int, ...]
    """Node of each rank's device, of the source, then of the target."""
    dtype: str
    only: frozenset[str] | None = None
    """Canonical tensors that move; None for all."""


class Plans:
    """A bounded cache in front of the planner; planning runs beside the event loop."""

    def __init__(self, max_cached: int) -> None:
        self._max_cached = max_cached
        self._plans: OrderedDict[PlanKey, PlannedTransfer] = OrderedDict()

    async def plan(
        self,
        model: Model,
        target: PlacedLayout,
        *,
        dtype: str,
        node_of: Mapping[int, int],
        only: frozenset[str] | None = None,
    ) -> PlannedTransfer:
        """How the target gets the weights of the model's source layout.

        Args:
            node_of: node of each device.
            only: canonical tensors that move; None for all.

        Raises:
            InvalidInput: an engine cannot cut this model so.
        """
        devices = (*model.source.layout.devices, *target.layout.devices)
        key = PlanKey(
            architecture=architecture_of(model),
            source=replace(model.source, weight_version=0, incarnations=()),
            target=replace(target, weight_version=0, incarnations=()),
            nodes=tuple(node_of[device] for device in devices),
            dtype=dtype,
            only=only,
        )
        if key not in self._plans:
            self._plans[key] = await asyncio.to_thread(_make, key, dict(node_of))
        self._plans.move_to_end(key)
        while len(self._plans) > self._max_cached:
            self._plans.popitem(last=False)
        return self._plans[key]


def architecture_of(model: Model) -> ModelArchitecture:
    """What a model is made of.

    Raises:
        InvalidInput: the configuration is not JSON, or misses what it needs.
    """
    try:
        config = json.loads(model.hf_config)
    except ValueError as error:
        raise InvalidInput.at("model.hf_config", f"is not JSON: {error}") from None
    architecture = ModelArchitecture.from_hf_config(config, model.head)
    return architecture.with_head(model.head)


def endpoints(placed: PlacedLayout, node_of: Mapping[int, int]) -> tuple[Endpoint, ...]:
    """The end of each rank; ranks that share a process are told apart by their number."""
    names: list[str] = []
    for shard in placed.shards:
        seen = sum(name.split("/")[0] == shard for name in names)
        names.append(f"{shard}/{seen}" if seen or placed.shards.count(shard) > 1 else shard)
    return tuple(
        Endpoint(name=name, device=device, node=node_of[device])
        for name, device in zip(names, placed.layout.devices, strict=True)
    )


def _make(key: PlanKey, node_of: Mapping[int, int]) -> PlannedTransfer:
    sources, destinations = endpoints(key.source, node_of), endpoints(key.target, node_of)
    read = _SideSpecs(key.architecture, key.source, "")
    written = _SideSpecs(key.architecture, key.target, key.dtype)
    read.check()
    written.check()
    plan = plan_transfer(
        key.architecture,
        key.source.layout,
        key.target.layout,
        source_endpoints=sources,
        destination_endpoints=destinations,
        dtype=key.dtype,
        only=key.only,
    )
    source_ranks = {endpoint: rank for rank, endpoint in enumerate(sources)}
    target_ranks = {endpoint: rank for rank, endpoint in enumerate(destinations)}
    expected = tuple(
        _expected(read, source_ranks.get(endpoint), written, target_ranks.get(endpoint))
        for endpoint in plan.endpoints
    )
    moved = len(plan.canonical_tensors) if key.only is None else len(key.only)
    return PlannedTransfer(plan=plan, expected=expected, num_tensors=moved)


class _SideSpecs:
    """The parameters of each rank of a layout; ranks that store the same share one table."""

    def __init__(self, architecture: ModelArchitecture, placed: PlacedLayout, dtype: str) -> None:
        self._architecture = architecture
        self._layout = placed.layout
        self._dtype = dtype
        self._tables: dict[tuple[int, int], tuple[ParameterSpec, ...]] = {}

    def name(self, rank: int) -> str:
        """Rank and layout, for errors."""
        return f"rank {rank} of {self._layout.short}"

    def check(self) -> None:
        """Refuse a layout whose boxes overlap, before anything is planned with it.

        Raises:
            InvalidInput: parameters with such boxes, and their ranks.
        """
        for rank in range(self._layout.strategy.num_ranks):
            self.of_rank(rank)

    def of_rank(self, rank: int) -> tuple[ParameterSpec, ...]:
        """What a rank must hold."""
        strategy = self._layout.strategy
        slice_ = provider_of(self._layout.kind).slice_of(strategy, rank)
        alike = (strategy.coordinate(rank).pipeline, slice_)
        if alike not in self._tables:
            with named_problems(self._layout):
                table = local_parameters(self._architecture, self._layout, rank)
            raise_problems(
                Problem(f"layout, {self.name(rank)}", f"{name} has boxes that overlap")
                for name in overlapping_parameters(table)
            )
            self._tables[alike] = tuple(
                ParameterSpec(name=one.name, shape=one.shape, dtype=self._dtype)
                for one in table.parameters
            )
        return self._tables[alike]


def _expected(
    read: _SideSpecs, source_rank: int | None, written: _SideSpecs, target_rank: int | None
) -> ExpectedParameters:
    """What the layouts say that an endpoint holds; a source may be of any element type."""
    names = []
    if source_rank is not None:
        names.append(read.name(source_rank))
    if target_rank is not None:
        names.append(written.name(target_rank))
    return ExpectedParameters(
        rank=" and ".join(names),
        source=() if source_rank is None else read.of_rank(source_rank),
        destination=() if target_rank is None else written.of_rank(target_rank),
    )
