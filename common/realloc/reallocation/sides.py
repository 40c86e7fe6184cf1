"""One end of a transfer: a layout whose ranks are processes.

A *holder* stands for all ranks that store the same thing of a section: for layers it is the
slice, for outer tensors the slice and stage together. One description per holder serves all
its data replicas, and for layers all stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, Int64
from realloc.reallocation.layouts.pieces import LocalTensor
from realloc.reallocation.layouts.provider import provider_of

LocalTensors = tuple[LocalTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """A layout with what a planner asks of it, per rank and per holder."""

    endpoint: Int64
    """[ranks] number of each rank's process in the plan's endpoints."""
    device: Int64
    """[ranks] global device id."""
    node: Int64
    """[ranks] node of the device."""
    slice_ranks: tuple[tuple[tuple[int, ...], ...], ...]
    """[stages][slices] the ranks of each slice and stage, ascending."""
    layer_holders: tuple[LocalTensors, ...]
    """[slices] one layer's parameters."""
    outer_holders: tuple[LocalTensors, ...]
    """[stages · slices] parameters outside layers; holder = stage · slices + slice."""
    layer_stage: Int64
    """[layers] stage of each layer."""
    layer_position: Int64
    """[layers] how many layers its stage holds before this one."""
    num_outer: Int64
    """[ranks] outer parameters, which come before the layers' in a rank's list."""
    num_layer: Int64
    """[ranks] parameters of one layer."""
    tensor_names: "TensorNames"

    @property
    def outer_ranks(self) -> tuple[tuple[int, ...], ...]:
        """[stages · slices] ranks of each holder of outer tensors."""
        return tuple(ranks for stage in self.slice_ranks for ranks in stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Names of each rank's parameters, made when asked for."""

    rank_holder: tuple[tuple[int, int], ...]
    """[ranks] stage and slice."""
    layer_holders: tuple[LocalTensors, ...]
    outer_holders: tuple[LocalTensors, ...]
    stage_prefixes: tuple[tuple[str, ...], ...]
    """[stages] prefix of each layer that the stage holds."""

    def of_rank(self, rank: int) -> tuple[str, ...]:
        """Parameter names in the order of `local_parameters`."""
        stage, slice_ = self.rank_holder[rank]
        layer = [tensor.name for tensor in self.layer_holders[slice_]]
        outer = self.outer_holders[stage * len(self.layer_holders) + slice_]
        return (
            *(tensor.name for tensor in outer),
            *(prefix + name for prefix in self.stage_prefixes[stage] for name in layer),
        )


def side_of(
    architecture: ModelArchitecture,
    layout: Layout,
    endpoints: Sequence[Endpoint],
    numbers: dict[Endpoint, int],
    field: str,
) -> Side:
    """Describe a layout; ``field`` names the endpoints in errors.

    Raises:
        InvalidInput: endpoints and layout disagree, or the engine cannot cut the model so.
    """
    _check_endpoints(layout, endpoints, field)
    strategy, provider = layout.strategy, provider_of(layout.kind)
    provider.check(architecture, strategy)
    slices, stages = provider.num_slices(strategy), strategy.pipeline
    holders = [
        (strategy.coordinate(rank).pipeline, provider.slice_of(strategy, rank))
        for rank in range(strategy.num_ranks)
    ]
    ranks: list[list[list[int]]] = [[[] for _ in range(slices)] for _ in range(stages)]
    for rank, (stage, slice_) in enumerate(holders):
        ranks[stage][slice_].append(rank)
    layer = tuple(provider.layer(architecture, strategy, s) for s in range(slices))
    outer = tuple(
        provider.outer(architecture, strategy, s, stage)
        for stage in range(stages)
        for s in range(slices)
    )
    layer_stage = np.array(provider.layer_stages(architecture, strategy), dtype=np.int64)
    prefixes = provider.layer_prefixes(architecture, strategy)
    position = np.zeros(len(layer_stage), dtype=np.int64)
    for stage in range(stages):
        held = layer_stage == stage
        position[held] = np.arange(held.sum())
    return Side(
        endpoint=np.array([numbers[endpoint] for endpoint in endpoints], dtype=np.int64),
        device=np.array([endpoint.device for endpoint in endpoints], dtype=np.int64),
        node=np.array([endpoint.node for endpoint in endpoints], dtype=np.int64),
        slice_ranks=tuple(tuple(map(tuple, row)) for row in ranks),
        layer_holders=layer,
        outer_holders=outer,
        layer_stage=layer_stage,
        layer_position=position,
        num_outer=np.array([len(outer[st * slices + sl]) for st, sl in holders], dtype=np.int64),
        num_layer=np.array([len(layer[sl]) for _, sl in holders], dtype=np.int64),
        tensor_names=TensorNames(
            rank_holder=tuple(holders),
            layer_holders=layer,
            outer_holders=outer,
            stage_prefixes=tuple(
                tuple(
                    prefix for prefix, of in zip(prefixes, layer_stage, strict=True) if of == stage
                )
                for stage in range(stages)
            ),
        ),
    )


def _check_endpoints(layout: Layout, endpoints: Sequence[Endpoint], field: str) -> None:
    if len(endpoints) != len(layout.devices):
        raise InvalidInput.at(
            field, f"names {len(endpoints)} processes and {layout} has {len(layout.devices)} ranks"
        )
    for rank, (endpoint, device) in enumerate(zip(endpoints, layout.devices, strict=True)):
        if endpoint.device != device:
            raise InvalidInput.at(
                f"{field}[{rank}]",
                f"{endpoint.name} owns device {endpoint.device} and the layout puts rank {rank} "
                f"on device {device}",
            )
