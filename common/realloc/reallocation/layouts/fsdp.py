"""Fully sharded data parallel: every canonical tensor cut evenly by its first dimension.

Rank ``r`` of ``n`` holds rows ``r · c … (r + 1) · c`` with ``c = ceil(rows / n)``, as
``torch.chunk`` and so FSDP2's ``Shard(0)`` deal them out; the last ranks may hold fewer rows,
or none.
"""

from realloc.core.errors import InvalidInput
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import ModelTensor, layer_tensors, outer_tensors
from realloc.reallocation.layouts.base import LayoutProvider
from realloc.reallocation.layouts.pieces import LocalTensor, Rectangle, stack


class FsdpLayout(LayoutProvider):
    """Parameters of a Hugging Face model under FSDP2; only the data degree may exceed 1."""

    def check(self, architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
        if strategy.num_ranks != strategy.data:
            raise InvalidInput.at(
                "strategy", f"is {strategy}; an fsdp layout shards over data ranks only"
            )

    def num_slices(self, strategy: ParallelStrategy) -> int:
        return strategy.data

    def slice_of(self, strategy: ParallelStrategy, rank: int) -> int:
        return rank

    def layer_stages(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[int, ...]:
        return (0,) * architecture.num_layers

    def layer(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy, slice_: int
    ) -> tuple[LocalTensor, ...]:
        return _chunks(layer_tensors(architecture), strategy.data, slice_)

    def outer(
        self,
        architecture: ModelArchitecture,
        strategy: ParallelStrategy,
        slice_: int,
        stage: int,
    ) -> tuple[LocalTensor, ...]:
        return _chunks(outer_tensors(architecture), strategy.data, slice_)


def _chunks(tensors: tuple[ModelTensor, ...], ranks: int, rank: int) -> tuple[LocalTensor, ...]:
    local = []
    for index, member in enumerate(tensors):
        rows = member.tensor.shape[0]
        chunk = -(-rows // ranks)
        first, last = min(rank * chunk, rows), min((rank + 1) * chunk, rows)
        local.append(
            stack(
                member.tensor.name,
                [Rectangle(index, first, last - first, 0)],
                width=member.tensor.cols,
                vector=len(member.tensor.shape) == 1,
            )
        )
    return tuple(local)
