"""What ``realloc layout`` tells of a model: per rank, and between two layouts."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout
from realloc.core.model import Head, ModelArchitecture
from realloc.core.transfer import Endpoint, TransferPlan
from realloc.reallocation.families import KNOWN_FAMILIES, canonical_tensors
from realloc.reallocation.layouts.provider import local_parameters, provider_of
from realloc.reallocation.limits import element_bytes
from realloc.reallocation.planner import plan_transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model folder's architecture, and the element type of its weights."""

    architecture: ModelArchitecture
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Of one copy of the model."""
        tensors = canonical_tensors(self.architecture)
        return sum(math.prod(tensor.shape) for tensor in tensors) * element_bytes(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSummary:
    """What one rank stores."""

    rank: int
    device: int
    num_tensors: int
    num_bytes: int
    padding_bytes: int
    """Of `num_bytes`, those that hold nothing of the model."""


def read_model(path: Path, head: Head, dtype: str = "") -> StoredModel:
    """The architecture of a model folder.

    Args:
        path: the folder, or its config.json.
        dtype: element type; empty takes the one that the configuration names.

    Raises:
        InvalidInput: no configuration of a known family can be read there, or the element type is
            unknown.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput.at("model", f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput.at("model", f"{file} is not a JSON object")
    family = config.get("model_type")
    if family not in KNOWN_FAMILIES:
        known = ", ".join(sorted(KNOWN_FAMILIES))
        raise InvalidInput.at("model", f"{file} has model_type {family!r}; known: {known}")
    dtype = dtype or str(config.get("dtype") or config.get("torch_dtype") or "float32")
    element_bytes(dtype)
    architecture = ModelArchitecture.from_hf_config(config, head).with_head(head)
    return StoredModel(architecture=architecture, dtype=dtype)


def summarize_ranks(stored: StoredModel, layout: Layout) -> tuple[RankSummary, ...]:
    """Tensors and bytes of each rank; ranks that store the same are counted once."""
    strategy, provider = layout.strategy, provider_of(layout.kind)
    size = element_bytes(stored.dtype)
    counted: dict[tuple[int, int], tuple[int, int, int]] = {}
    summaries = []
    for rank, device in enumerate(layout.devices):
        alike = (strategy.coordinate(rank).pipeline, provider.slice_of(strategy, rank))
        if alike not in counted:
            table = local_parameters(stored.architecture, layout, rank)
            elements = sum(parameter.num_elements for parameter in table.parameters)
            padding = elements - table.blocks.num_elements
            counted[alike] = (len(table.parameters), elements * size, padding * size)
        num_tensors, num_bytes, padding_bytes = counted[alike]
        summaries.append(
            RankSummary(
                rank=rank,
                device=device,
                num_tensors=num_tensors,
                num_bytes=num_bytes,
                padding_bytes=padding_bytes,
            )
        )
    return tuple(summaries)


def plan_difference(
    stored: StoredModel, source: Layout, target: Layout, devices_per_node: int
) -> TransferPlan:
    """The plan between two layouts, each rank a process of its own."""
    if devices_per_node < 1:
        raise InvalidInput.at("devices_per_node", f"is {devices_per_node} and must be positive")

    def processes(layout: Layout, role: str) -> tuple[Endpoint, ...]:
        return tuple(
            Endpoint(name=f"{role} rank {rank}", device=device, node=device // devices_per_node)
            for rank, device in enumerate(layout.devices)
        )

    return plan_transfer(
        stored.architecture,
        source,
        target,
        source_endpoints=processes(source, "source"),
        destination_endpoints=processes(target, "target"),
        dtype=stored.dtype,
    )
