"""Which rank stores which boxes of which canonical tensors: the public table of a layout.

``local_parameters(architecture, layout, rank)`` names a rank's parameters, their shapes, and
the blocks that map their storage to canonical tensors. The same table converts checkpoints:
to load, copy each block from the Hugging Face tensor; to export, copy it back.

Blocks of one parameter never overlap, and storage that no block covers is padding. A
one-dimensional tensor counts as rows of one element; blocks that are contiguous on both sides
are given as one row.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from realloc.core.errors import InvalidInput, Problem
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Blocks
from realloc.reallocation.families import layer_tensors, outer_tensors
from realloc.reallocation.layouts.base import LayoutProvider
from realloc.reallocation.layouts.fsdp import FsdpLayout
from realloc.reallocation.layouts.huggingface import HuggingFaceLayout
from realloc.reallocation.layouts.megatron import MegatronLayout
from realloc.reallocation.layouts.pieces import LocalTensor
from realloc.reallocation.layouts.vllm import VllmLayout

_PROVIDERS: dict[LayoutKind, LayoutProvider] = {
    LayoutKind.HUGGINGFACE: HuggingFaceLayout(),
    LayoutKind.MEGATRON: MegatronLayout(),
    LayoutKind.VLLM: VllmLayout(),
    LayoutKind.FSDP: FsdpLayout(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalParameter:
    """A parameter as its engine names and shapes it on one rank."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankLayout:
    """Everything that one rank stores of a model."""

    parameters: tuple[LocalParameter, ...]
    blocks: Blocks
    """``tensor`` indexes ``parameters``; ``canonical`` indexes `families.canonical_tensors`."""


def provider_of(kind: LayoutKind) -> LayoutProvider:
    """The rules of one kind of layout."""
    return _PROVIDERS[kind]


@contextmanager
def named_problems(layout: Layout) -> Iterator[None]:
    """Problems that arise within name the layout: there may be two of them."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(
            *(Problem(f"{layout.short}: {each.path}", each.reason) for each in error.problems)
        ) from error


def local_parameters(architecture: ModelArchitecture, layout: Layout, rank: int) -> RankLayout:
    """What rank ``rank`` of the layout stores: first the outer parameters, then its layers.

    Raises:
        InvalidInput: the rank is not in the layout, or the engine cannot cut this model so.
    """
    strategy = layout.strategy
    if not 0 <= rank < strategy.num_ranks:
        raise InvalidInput.at(
            "rank", f"is {rank}; {strategy} has ranks 0 … {strategy.num_ranks - 1}"
        )
    provider = provider_of(layout.kind)
    provider.check(architecture, strategy)
    stage, slice_ = strategy.coordinate(rank).pipeline, provider.slice_of(strategy, rank)
    outer = provider.outer(architecture, strategy, slice_, stage)
    layer = provider.layer(architecture, strategy, slice_)
    stages = provider.layer_stages(architecture, strategy)
    prefixes = provider.layer_prefixes(architecture, strategy)
    numbering = CanonicalNumbering.of(architecture)
    table = _Table()
    table.add(outer, prefix="", numbers=numbering.outer, cols=numbering.outer_cols)
    for number in range(architecture.num_layers):
        if stages[number] == stage:
            table.add(
                layer,
                prefix=prefixes[number],
                numbers=numbering.layer(number),
                cols=numbering.layer_cols,
            )
    return table.rank_layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalNumbering:
    """Where the tensors of both sections stand in `families.canonical_tensors`."""

    outer: tuple[int, ...]
    outer_cols: tuple[int, ...]
    layer_cols: tuple[int, ...]

    @staticmethod
    def of(architecture: ModelArchitecture) -> "CanonicalNumbering":
        """The embedding comes first, the layers follow, then the other outer tensors."""
        outer, layer = outer_tensors(architecture), layer_tensors(architecture)
        after = 1 + architecture.num_layers * len(layer)
        return CanonicalNumbering(
            outer=(0, *range(after, after + len(outer) - 1)),
            outer_cols=tuple(member.tensor.cols for member in outer),
            layer_cols=tuple(member.tensor.cols for member in layer),
        )

    def layer(self, number: int) -> range:
        """Canonical numbers of one layer's tensors."""
        size = len(self.layer_cols)
        return range(1 + number * size, 1 + (number + 1) * size)


class _Table:
    """Collects parameters and blocks."""

    def __init__(self) -> None:
        self._parameters: list[LocalParameter] = []
        self._blocks: list[tuple[int, ...]] = []

    def add(
        self,
        tensors: Iterable[LocalTensor],
        *,
        prefix: str,
        numbers: tuple[int, ...] | range,
        cols: tuple[int, ...],
    ) -> None:
        for tensor in tensors:
            index = len(self._parameters)
            self._parameters.append(LocalParameter(name=prefix + tensor.name, shape=tensor.shape))
            for segment in tensor.segments:
                stride, width = cols[segment.tensor], tensor.width
                rows = segment.rows
                if stride == width:
                    rows, width = 1, rows * width
                self._blocks.append(
                    (
                        index,
                        segment.local_row * tensor.width,
                        rows,
                        width,
                        width if rows == 1 else tensor.width,
                        numbers[segment.tensor],
                        segment.row * stride + segment.col,
                        width if rows == 1 else stride,
                    )
                )

    def rank_layout(self) -> RankLayout:
        columns = np.array(self._blocks, dtype=np.int64).reshape(-1, 8).T
        return RankLayout(
            parameters=tuple(self._parameters),
            blocks=Blocks(
                tensor=columns[0].astype(np.int32),
                start=columns[1].copy(),
                rows=columns[2].copy(),
                cols=columns[3].copy(),
                row_stride=columns[4].copy(),
                canonical=columns[5].astype(np.int32),
                canonical_start=columns[6].copy(),
                canonical_stride=columns[7].copy(),
            ),
        )
