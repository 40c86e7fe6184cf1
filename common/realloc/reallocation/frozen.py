"""Canonical tensors that keep their weights while the rest of a model trains."""

from collections.abc import Iterable, Sequence

import numpy as np

from realloc.core.errors import Problem, raise_problems
from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.reallocation.families import canonical_names
from realloc.reallocation.layouts.provider import RankLayout, local_parameters


def is_frozen(tensor: str, names: Sequence[str]) -> bool:
    """True where a tensor is named, or a part of the model that it belongs to.

    ``model.layers.1`` names all of layer 1 and nothing of layer 10.
    """
    return any(tensor == name or tensor.startswith(name.rstrip(".") + ".") for name in names)


def unknown_names(architecture: ModelArchitecture, names: Sequence[str]) -> Iterable[int]:
    """Positions of names that belong to no tensor of a model."""
    tensors = canonical_names(architecture)
    return [
        position
        for position, name in enumerate(names)
        if not any(is_frozen(tensor, (name,)) for tensor in tensors)
    ]


def check_frozen(architecture: ModelArchitecture, layout: Layout, names: Sequence[str]) -> None:
    """Refuse what an engine cannot leave alone.

    Raises:
        InvalidInput: parameters that fuse frozen tensors with others, or a pipeline stage in
            which nothing would train.
    """
    strategy, problems = layout.strategy, []
    for stage in range(strategy.pipeline):
        rank = strategy.rank(data=0, tensor=0, pipeline=stage)
        table = local_parameters(architecture, layout, rank)
        members = _members(architecture, table)
        for parameter, tensors in members.items():
            frozen = {tensor for tensor in tensors if is_frozen(tensor, names)}
            if frozen and frozen != tensors:
                problems.append(
                    Problem(
                        "optimizer.frozen",
                        f"{parameter} holds {', '.join(sorted(tensors))}: freeze all or none of "
                        "them",
                    )
                )
        if all(is_frozen(tensor, names) for tensors in members.values() for tensor in tensors):
            problems.append(
                Problem(
                    "optimizer.frozen",
                    "leaves nothing to train"
                    + (f" in stage {stage} of {strategy}" if strategy.pipeline > 1 else ""),
                )
            )
    raise_problems(problems)


def frozen_parameters(
    architecture: ModelArchitecture, table: RankLayout, names: Sequence[str]
) -> frozenset[str]:
    """Names of a rank's parameters that hold frozen tensors."""
    return frozenset(
        parameter
        for parameter, tensors in _members(architecture, table).items()
        if all(is_frozen(tensor, names) for tensor in tensors)
    )


def _members(architecture: ModelArchitecture, table: RankLayout) -> dict[str, set[str]]:
    """The canonical tensors in each parameter of a rank."""
    tensors = canonical_names(architecture)
    pairs = np.unique(np.stack((table.blocks.tensor, table.blocks.canonical)), axis=1)
    members: dict[str, set[str]] = {}
    for parameter, canonical in pairs.T.tolist():
        members.setdefault(table.parameters[parameter].name, set()).add(tensors[canonical])
    return members
