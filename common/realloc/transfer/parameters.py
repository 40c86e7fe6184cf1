"""Local parameters of a program: checked once, then read and written in place by blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from realloc.core.errors import Problem, raise_problems
from realloc.core.transfer import Blocks, Int64
from realloc.transfer.matching import Strip
from realloc.transfer.streams import Piece

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Element types on the way, by their names in a plan."""
_ABSENT = torch.empty(0)
"""Stands for a parameter that no block names."""


class Parameters:
    """The parameters that a program reads or writes, numbered as its blocks number them."""

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[torch.Tensor | None],
        blocks: Blocks,
    ) -> None:
        """Check that every block lies in its parameter.

        Args:
            names: of the parameters, for errors.
            tensors: the parameters; None where this process lacks one.
            blocks: all that will be read or written.

        Raises:
            InvalidInput: parameters in use that are missing, not contiguous, not of floating
                point or too small; all of them, each by its name.
        """
        needed = _needed_elements(len(names), blocks)
        used = [
            (name, tensor, int(size))
            for name, tensor, size in zip(names, tensors, needed, strict=True)
            if size
        ]
        raise_problems(problem for item in used for problem in _problems(*item))
        self.names = tuple(names)
        self.flat = tuple(
            tensor.detach().view(-1) if size and tensor is not None else _ABSENT
            for tensor, size in zip(tensors, needed, strict=True)
        )
        self.used = [flat for flat in self.flat if flat is not _ABSENT]
        self._dtypes = {flat.dtype for flat in self.used}

    @property
    def device(self) -> torch.device:
        """Where the parameters in use lie; the CPU where there are none."""
        return self.used[0].device if self.used else torch.device("cpu")

    def all_of(self, dtype: torch.dtype) -> bool:
        """Whether every parameter in use has this element type."""
        return self._dtypes <= {dtype}

    def synchronize(self) -> None:
        """Wait until a GPU has done all that was asked of it on the current stream."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def strip(self, piece: Piece) -> Strip:
        """Where a piece lies."""
        flat = self.flat[piece.tensor]
        return Strip(flat, piece.start, piece.rows, piece.cols, piece.row_stride)

    def pack(self, pieces: Sequence[Piece], chunk: torch.Tensor) -> None:
        """Copy pieces into a chunk, cast to its element type."""
        for piece in pieces:
            _part(chunk, piece).copy_(self.strip(piece).view())

    def unpack(self, pieces: Sequence[Piece], chunk: torch.Tensor) -> None:
        """Copy a chunk to where its pieces lie, cast to their element type."""
        for piece in pieces:
            self.strip(piece).view().copy_(_part(chunk, piece))

    def direct(
        self, pieces: Sequence[Piece], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor | None:
        """The memory of a chunk itself, where it is one run, of this element type, there."""
        if len(pieces) != 1 or not pieces[0].contiguous:
            return None
        flat = self.flat[pieces[0].tensor]
        if flat.dtype != dtype or flat.device.type != device.type:
            return None
        return flat[pieces[0].start : pieces[0].start + pieces[0].cols]


def _part(chunk: torch.Tensor, piece: Piece) -> torch.Tensor:
    part = chunk[piece.offset : piece.offset + piece.num_elements]
    return part.view(piece.rows, piece.cols)


def _needed_elements(num_tensors: int, blocks: Blocks) -> Int64:
    """How long each parameter must be for its blocks; 0 for one that no block names."""
    needed = np.zeros(num_tensors, dtype=np.int64)
    last = blocks.start + (blocks.rows - 1) * blocks.row_stride + blocks.cols
    np.maximum.at(needed, blocks.tensor, last)
    return needed


def _problems(name: str, tensor: torch.Tensor | None, size: int) -> Iterator[Problem]:
    if tensor is None:
        yield Problem(name, "the program moves it and this process lacks it")
    elif not tensor.is_contiguous():
        yield Problem(name, "is not contiguous")
    elif not tensor.is_floating_point():
        yield Problem(name, f"has element type {tensor.dtype}")
    elif tensor.numel() < size:
        yield Problem(name, f"has {tensor.numel()} elements and the program needs {size}")
