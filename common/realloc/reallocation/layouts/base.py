"""What a layout provider must say, and the public table made of it.

A model is two *sections*: the layers, which are all alike, and the outer tensors (embedding,
final norm, head). Ranks that store the same part of every layer of their stage have the same
*slice*; a provider describes one layer per slice instead of every layer of every rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import groupby

from realloc.core.errors import InvalidInput
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import ModelTensor
from realloc.reallocation.layouts.pieces import LocalTensor

Member = tuple[int, ModelTensor]
"""A tensor with its index in its section's list."""


class LayoutProvider(ABC):
    """One engine's rules; stateless."""

    def check(self, architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
        """Raise `InvalidInput` where the engine cannot run this strategy.

        What only a slice can see, such as heads that do not divide, raises there.
        """
        if strategy.expert > 1 and strategy.data % strategy.expert:
            raise InvalidInput.at(
                "strategy", f"expert degree {strategy.expert} must divide data {strategy.data}"
            )

    def num_slices(self, strategy: ParallelStrategy) -> int:
        """Number of different slices of a layer."""
        return strategy.expert * strategy.tensor

    def slice_of(self, strategy: ParallelStrategy, rank: int) -> int:
        """Slice of a rank: the expert axis is the fast part of the data axis."""
        at = strategy.coordinate(rank)
        return (at.data % strategy.expert) * strategy.tensor + at.tensor

    @abstractmethod
    def layer_stages(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[int, ...]:
        """Pipeline rank that holds each layer."""

    def layer_prefixes(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[str, ...]:
        """What stands before the names of each layer's parameters on its ranks; here as in a
        checkpoint of Hugging Face."""
        return tuple(f"model.layers.{layer}." for layer in range(architecture.num_layers))

    @abstractmethod
    def layer(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy, slice_: int
    ) -> tuple[LocalTensor, ...]:
        """The parameters of one layer in one slice, named without the layer's prefix."""

    @abstractmethod
    def outer(
        self,
        architecture: ModelArchitecture,
        strategy: ParallelStrategy,
        slice_: int,
        stage: int,
    ) -> tuple[LocalTensor, ...]:
        """The parameters outside layers of the ranks of one slice and stage."""


def by_name(members: list[tuple[str, Member]]) -> Iterator[tuple[str, list[Member]]]:
    """Group tensors by the name of the parameter that holds them, in order of first sight."""
    order = {name: position for position, (name, _) in reversed(list(enumerate(members)))}
    ordered = sorted(members, key=lambda item: order[item[0]])
    for name, group in groupby(ordered, key=lambda item: item[0]):
        yield name, [member for _, member in group]
