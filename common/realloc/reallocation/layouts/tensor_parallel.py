"""Cuts that Megatron-core and vLLM have in common."""

from realloc.core.layout import LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.reallocation.families import ModelTensor
from realloc.reallocation.layouts.base import Member
from realloc.reallocation.layouts.pieces import LocalTensor, Rectangle, divide, stack

VLLM_VOCABULARY_MULTIPLE = 64
"""``DEFAULT_VOCAB_PADDING_SIZE`` of vLLM 0.32."""


def padded_vocab_size(architecture: ModelArchitecture, kind: LayoutKind, tp: int) -> int:
    """Rows of the embedding and the head over all tensor ranks, padding included.

    Megatron models are built with the vocabulary rounded up to a multiple of ``tp``; vLLM
    rounds up to a multiple of 64; the other layouts do not pad.
    """
    multiple = {LayoutKind.MEGATRON: tp, LayoutKind.VLLM: VLLM_VOCABULARY_MULTIPLE}.get(kind, 1)
    return -(-architecture.vocab_size // multiple) * multiple


def replicated(name: str, index: int, member: ModelTensor) -> LocalTensor:
    """A tensor that every tensor rank holds whole."""
    tensor = member.tensor
    return stack(
        name,
        [Rectangle(index, 0, tensor.shape[0], 0)],
        width=tensor.cols,
        vector=len(tensor.shape) == 1,
    )


def column_slice(name: str, index: int, member: ModelTensor, tp: int, rank: int) -> LocalTensor:
    """Columns ``rank`` of ``tp`` equal parts: the input-parallel projections."""
    rows, cols = member.tensor.shape
    width = divide(cols, tp, f"the second dimension of {member.tensor.name}")
    return stack(name, [Rectangle(index, 0, rows, rank * width)], width=width)


def row_slices(name: str, members: list[Member], tp: int, rank: int) -> LocalTensor:
    """Part ``rank`` of the rows of each member, one member below the other."""
    rectangles = []
    for index, member in members:
        rows = divide(member.tensor.shape[0], tp, f"the first dimension of {member.tensor.name}")
        rectangles.append(Rectangle(index, rank * rows, rows, 0))
    first = members[0][1].tensor
    return stack(name, rectangles, width=first.cols, vector=len(first.shape) == 1)


def vocabulary_slice(
    name: str, index: int, member: ModelTensor, padded: int, tp: int, rank: int
) -> LocalTensor:
    """Part ``rank`` of the padded vocabulary's rows; padding is no segment."""
    vocabulary, hidden = member.tensor.shape
    rows = divide(padded, tp, "the padded vocabulary")
    first = min(rank * rows, vocabulary)
    last = min(first + rows, vocabulary)
    return stack(
        name, [Rectangle(index, first, last - first, 0)], width=hidden, shape=(rows, hidden)
    )
