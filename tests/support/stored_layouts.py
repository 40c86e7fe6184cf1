"""What the ranks of a layout hold of a checkpoint, according to its plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.planner import plan_transfer
from realloc.reallocation.reference import execute


def stored(
    architecture: ModelArchitecture, layout: Layout, checkpoint: Mapping[str, np.ndarray[Any, Any]]
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Every rank's parameters; zeros where nothing of the checkpoint goes.

    Args:
        layout: on other devices than 0, where the checkpoint is.
        checkpoint: canonical tensors by name, float32.
    """
    ranks = [str(rank) for rank in range(layout.strategy.num_ranks)]
    plan = plan_transfer(
        architecture,
        Layout(kind=LayoutKind.HUGGINGFACE, strategy=ParallelStrategy(), devices=(0,)),
        layout,
        source_endpoints=[Endpoint(name="checkpoint", device=0, node=0)],
        destination_endpoints=[
            Endpoint(name=rank, device=device, node=0)
            for rank, device in zip(ranks, layout.devices, strict=True)
        ],
        dtype="float32",
    )
    held = [
        {
            each.name: np.zeros(each.shape, np.float32)
            for each in local_parameters(architecture, layout, int(rank)).parameters
        }
        for rank in ranks
    ]
    execute(plan, {"checkpoint": checkpoint}, dict(zip(ranks, held, strict=True)))
    return held
