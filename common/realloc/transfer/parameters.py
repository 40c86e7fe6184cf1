"""Local parameters of a program: checked once, then read and written in place by blocks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from realloc.core.errors import Problem, raise_problems
from realloc.core.transfer import Blocks
from realloc.transfer.streams import Piece

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Element types on the way, by their names in a plan."""


class Parameters:
    """The parameters that a program reads or writes, in the order of its list of names."""

    def __init__(
        self, names: Sequence[str], tensors: Mapping[str, torch.Tensor], blocks: Blocks
    ) -> None:
        """Check that every block lies in its parameter.

        Raises:
            InvalidInput: parameters that are missing, not contiguous, not of floating point or
                too small; all of them, each by its name.
        """
        raise_problems(_problems(names, tensors, blocks))
        self.names = tuple(names)
        self.flat = tuple(tensors[name].detach().view(-1) for name in names)
        self._dtypes = {flat.dtype for flat in self.flat}

    @property
    def device(self) -> torch.device:
        """Where the parameters lie; the CPU where there are none."""
        return self.flat[0].device if self.flat else torch.device("cpu")

    def all_of(self, dtype: torch.dtype) -> bool:
        """Whether every parameter has this element type."""
        return self._dtypes <= {dtype}

    def view(self, piece: Piece) -> torch.Tensor:
        """The piece in place, [rows, cols]."""
        flat = self.flat[piece.tensor]
        return flat.as_strided(
            (piece.rows, piece.cols),
            (piece.row_stride, 1),
            flat.storage_offset() + piece.start,
        )

    def pack(self, pieces: Sequence[Piece], chunk: torch.Tensor) -> None:
        """Copy pieces into a chunk, cast to its element type."""
        for piece in pieces:
            _part(chunk, piece).copy_(self.view(piece))

    def unpack(self, pieces: Sequence[Piece], chunk: torch.Tensor) -> None:
        """Copy a chunk to where its pieces lie, cast to their element type."""
        for piece in pieces:
            self.view(piece).copy_(_part(chunk, piece))

    def direct(self, pieces: Sequence[Piece], dtype: torch.dtype) -> torch.Tensor | None:
        """The memory of a chunk itself, where it is one run of the element type on the way."""
        if len(pieces) != 1 or not pieces[0].contiguous:
            return None
        flat = self.flat[pieces[0].tensor]
        if flat.dtype != dtype:
            return None
        return flat[pieces[0].start : pieces[0].start + pieces[0].cols]


def _part(chunk: torch.Tensor, piece: Piece) -> torch.Tensor:
    part = chunk[piece.offset : piece.offset + piece.num_elements]
    return part.view(piece.rows, piece.cols)


def _problems(
    names: Sequence[str], tensors: Mapping[str, torch.Tensor], blocks: Blocks
) -> list[Problem]:
    needed = np.zeros(len(names), dtype=np.int64)
    last = blocks.start + (blocks.rows - 1) * blocks.row_stride + blocks.cols
    np.maximum.at(needed, blocks.tensor, last)
    problems = []
    for name, size in zip(names, needed.tolist(), strict=True):
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(Problem(name, "the program moves it and this process lacks it"))
        elif not tensor.is_contiguous():
            problems.append(Problem(name, "is not contiguous"))
        elif not tensor.is_floating_point():
            problems.append(Problem(name, f"has element type {tensor.dtype}"))
        elif tensor.numel() < size:
            problems.append(
                Problem(name, f"has {tensor.numel()} elements and the program needs {size}")
            )
    return problems
