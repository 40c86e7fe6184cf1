"""Small models, layouts and processes, and plans executed on them by the numpy reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint, TransferPlan
from realloc.reallocation.families import canonical_names, canonical_tensors
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from realloc.reallocation.limits import TransferLimits
from realloc.reallocation.planner import plan_transfer
from realloc.reallocation.reference import execute, fill

MOE_FAMILIES = ("mixtral", "qwen3_moe")


def architecture(family: str = "llama", **changes: Any) -> ModelArchitecture:
    """A model whose sizes have many divisors."""
    moe = family in MOE_FAMILIES
    settings: dict[str, Any] = {
        "family": family,
        "num_layers": 4,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "head_dim": 4,
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "qkv_bias": family == "qwen2",
        "qk_norm": family.startswith(("qwen3", "gemma3")),
        "num_experts": 4 if moe else 0,
        "expert_intermediate_size": 12 if moe else 0,
    }
    return ModelArchitecture(**(settings | changes))


def layout(text: str, devices: Sequence[int] | int = 0) -> Layout:
    """``megatron:d1t2p1`` on the given devices, or on those from the given one on."""
    kind, strategy = text.split(":")
    parsed = ParallelStrategy.parse(strategy)
    if isinstance(devices, int):
        devices = range(devices, devices + parsed.num_ranks)
    return Layout(kind=LayoutKind(kind), strategy=parsed, devices=tuple(devices))


def endpoints(of: Layout, role: str, node_size: int = 4) -> list[Endpoint]:
    """One process per rank; ``role`` names it together with its device."""
    return [
        Endpoint(name=f"{role}-{device}", device=device, node=device // node_size)
        for device in of.devices
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A reallocation to be planned and executed."""

    model: ModelArchitecture
    source: Layout
    destination: Layout
    roles: tuple[str, str] = ("trainer", "generation")
    node_size: int = 4
    dtype: str = "float32"
    limits: TransferLimits | None = None
    only: frozenset[str] | None = None

    @property
    def have(self) -> list[Endpoint]:
        return endpoints(self.source, self.roles[0], self.node_size)

    @property
    def want(self) -> list[Endpoint]:
        return endpoints(self.destination, self.roles[1], self.node_size)

    def plan(self) -> TransferPlan:
        """The plan under test."""
        return plan_transfer(
            self.model,
            self.source,
            self.destination,
            source_endpoints=self.have,
            destination_endpoints=self.want,
            dtype=self.dtype,
            limits=self.limits,
            only=self.only,
        )

    def tables(self, side: Layout) -> list[RankLayout]:
        """What each rank of a side stores."""
        return [local_parameters(self.model, side, r) for r in range(len(side.devices))]

    def weights(self) -> list[np.ndarray]:
        """Canonical tensors, all elements different."""
        random = np.random.default_rng(0)
        return [
            random.standard_normal(tensor.shape).astype(np.float32)
            for tensor in canonical_tensors(self.model)
        ]


def empty(table: RankLayout, value: float = np.nan) -> dict[str, np.ndarray]:
    """Buffers of a rank's parameters."""
    return {p.name: np.full(p.shape, value, dtype=np.float32) for p in table.parameters}


def filled(table: RankLayout, weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A rank's parameters, NaN in the padding."""
    arrays = empty(table)
    fill(table.blocks, list(arrays.values()), weights)
    return arrays


Allocate = Callable[[Case], tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]]
"""Makes the buffers of source and destination ranks."""


def separate(case: Case) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Buffers that nobody shares."""
    return (
        [empty(table) for table in case.tables(case.source)],
        [empty(table) for table in case.tables(case.destination)],
    )


def in_one_memory(
    case: Case, ahead: int
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Give each device one memory; the destination begins ``ahead`` elements into it."""
    tables = [case.tables(side) for side in (case.source, case.destination)]
    most = max(sum(p.num_elements for p in table.parameters) for of in tables for table in of)
    memory: dict[int, np.ndarray] = {}
    sides = []
    for side, of, first in zip((case.source, case.destination), tables, (0, ahead), strict=True):
        buffers = []
        for device, table in zip(side.devices, of, strict=True):
            flat = memory.setdefault(device, np.full(most + ahead, np.nan, dtype=np.float32))
            arrays, at = {}, first
            for parameter in table.parameters:
                arrays[parameter.name] = flat[at : at + parameter.num_elements].reshape(
                    parameter.shape
                )
                at += parameter.num_elements
            buffers.append(arrays)
        sides.append(buffers)
    return sides[0], sides[1]


def run(case: Case, allocate: Allocate = separate) -> TransferPlan:
    """Plan, execute, and compare every destination parameter with what it should be."""
    weights = case.weights()
    sources, targets = allocate(case)
    for table, arrays in zip(case.tables(case.source), sources, strict=True):
        fill(table.blocks, list(arrays.values()), weights)
    plan = case.plan()
    execute(
        plan,
        {endpoint.name: arrays for endpoint, arrays in zip(case.have, sources, strict=True)},
        {endpoint.name: arrays for endpoint, arrays in zip(case.want, targets, strict=True)},
    )
    if case.only is not None:
        for name, weight in zip(canonical_names(case.model), weights, strict=True):
            weight[...] = weight if name in case.only else np.nan
    for table, arrays in zip(case.tables(case.destination), targets, strict=True):
        expected = filled(table, weights)
        for name, array in expected.items():
            real = ~np.isnan(array)
            np.testing.assert_array_equal(arrays[name][real], array[real], err_msg=name)
            assert case.only is None or np.isnan(arrays[name][~real]).all()
    return plan
