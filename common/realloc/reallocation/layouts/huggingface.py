"""The Hugging Face layout: every data rank holds every canonical tensor whole."""

from realloc.core.errors import InvalidInput
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import ModelTensor, layer_tensors, outer_tensors
from realloc.reallocation.layouts.base import LayoutProvider
from realloc.reallocation.layouts.pieces import LocalTensor, Rectangle, stack


class HuggingFaceLayout(LayoutProvider):
    """A checkpoint in memory; only the data degree may exceed 1."""

    def check(self, architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
        if strategy.num_ranks != strategy.data:
            raise InvalidInput.at(
                "strategy", f"is {strategy}; a huggingface layout has data replicas only"
            )

    def num_slices(self, strategy: ParallelStrategy) -> int:
        return 1

    def slice_of(self, strategy: ParallelStrategy, rank: int) -> int:
        return 0

    def layer_stages(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy
    ) -> tuple[int, ...]:
        return (0,) * architecture.num_layers

    def layer(
        self, architecture: ModelArchitecture, strategy: ParallelStrategy, slice_: int
    ) -> tuple[LocalTensor, ...]:
        return _whole(layer_tensors(architecture))

    def outer(
        self,
        architecture: ModelArchitecture,
        strategy: ParallelStrategy,
        slice_: int,
        stage: int,
    ) -> tuple[LocalTensor, ...]:
        return _whole(outer_tensors(architecture))


def _whole(tensors: tuple[ModelTensor, ...]) -> tuple[LocalTensor, ...]:
    return tuple(
        stack(
            member.tensor.name,
            [Rectangle(index, 0, member.tensor.shape[0], 0)],
            width=member.tensor.cols,
            vector=len(member.tensor.shape) == 1,
        )
        for index, member in enumerate(tensors)
    )
