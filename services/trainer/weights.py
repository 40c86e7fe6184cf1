"""Filling a rank's parameters with canonical tensors, from a checkpoint or at random.

Both sources give any rectangle of a canonical tensor, so what a model starts from does not
depend on its layout, and a rank reads only its own part.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.transfer import Blocks
from realloc.reallocation.families import VALUE_HEAD, CanonicalTensor
from realloc.reallocation.layouts.provider import RankLayout
from services.trainer.progress import Progress, ignore_progress
from services.trainer.safetensors_reader import SafetensorsReader

PIECE_ELEMENTS = 4 << 20
"""Elements that are read, sent or copied at a time: 16 MiB of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of a canonical tensor; a vector counts as rows of one element."""

    row: int
    rows: int
    col: int
    cols: int


class TensorSource(Protocol):
    """Where canonical tensors come from."""

    def read(self, tensor: CanonicalTensor, box: Box) -> Tensor:
        """The rectangle, [rows, cols] on the CPU, of any floating point type."""
        ...

    def close(self) -> None:
        """Let go of files and memory."""
        ...


class RandomWeights:
    """Normal weights, norms of one, biases of zero; equal for equal seed and tensor name."""

    def __init__(self, seed: int, standard_deviation: float) -> None:
        self._seed = seed
        self._standard_deviation = standard_deviation
        self._latest: tuple[str, Tensor] | None = None

    def read(self, tensor: CanonicalTensor, box: Box) -> Tensor:
        if self._latest is None or self._latest[0] != tensor.name:
            self._latest = tensor.name, self._create(tensor)
        whole = self._latest[1]
        return whole[box.row : box.row + box.rows, box.col : box.col + box.cols]

    def close(self) -> None:
        """Forget the tensor that was made last."""
        self._latest = None

    def _create(self, tensor: CanonicalTensor) -> Tensor:
        shape = tensor.shape[0], tensor.cols
        if len(tensor.shape) == 1:
            return torch.zeros(shape) if tensor.name.endswith(".bias") else torch.ones(shape)
        key = hashlib.sha256(f"{self._seed}/{tensor.name}".encode()).digest()[:16]
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        values = generator.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(values).mul_(self._standard_deviation)


class HuggingFaceWeights:
    """The safetensors files of a Hugging Face folder, read by rectangles.

    A value head that the checkpoint lacks comes from `head` instead: a critic may start from
    a language model.
    """

    def __init__(self, folder: Path, tensors: Sequence[CanonicalTensor], head: TensorSource):
        """Open every file and check that each tensor is there.

        Raises:
            InvalidInput: a file cannot be read, or a tensor is missing or has another shape.
        """
        self._files = _open_files(folder)
        self._head = head
        raise_problems(self._problems(folder, tensors))

    def read(self, tensor: CanonicalTensor, box: Box) -> Tensor:
        if tensor.name not in self._files:
            return self._head.read(tensor, box)
        file = self._files[tensor.name]
        return file.read(tensor.name, box.row, box.rows, box.col, box.cols)

    def close(self) -> None:
        """Close every file."""
        self._head.close()
        for file in set(self._files.values()):
            file.close()

    def _problems(self, folder: Path, tensors: Sequence[CanonicalTensor]) -> Iterator[Problem]:
        for tensor in tensors:
            if tensor.name not in self._files:
                if tensor.name != VALUE_HEAD:
                    yield Problem("checkpoint", f"{folder} has no tensor {tensor.name}")
                continue
            shape = self._files[tensor.name].tensors[tensor.name].shape
            if shape != tensor.shape:
                yield Problem(
                    "checkpoint",
                    f"{tensor.name} is {list(shape)} in {folder} and the model needs "
                    f"{list(tensor.shape)}",
                )


def _open_files(folder: Path) -> Mapping[str, SafetensorsReader]:
    """The open file of each tensor."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    try:
        if index.exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidInput.at("checkpoint", f"{index} cannot be read: {error}") from error
    files = [SafetensorsReader(folder / name) for name in names]
    return {tensor: file for file in files for tensor in file.tensors}


def load_weights(
    parameters: Mapping[str, Tensor],
    layout: RankLayout,
    tensors: Sequence[CanonicalTensor],
    source: TensorSource,
    progress: Progress = ignore_progress,
) -> None:
    """Fill a rank's parameters in place; what no block covers keeps its value.

    Blocks come in pieces of bounded size, so that little is held besides the parameters.
    """
    names = [parameter.name for parameter in layout.parameters]
    assert set(names) == set(parameters), set(names) ^ set(parameters)
    blocks, done = layout.blocks, 0
    total = blocks.num_elements
    # In canonical order: a random tensor is made once and then cut.
    for index in np.argsort(blocks.canonical, kind="stable"):
        flat = parameters[names[blocks.tensor[index]]].view(-1)
        tensor = tensors[blocks.canonical[index]]
        box = block_box(blocks, int(index), tensor)
        target = block_view(flat, blocks, int(index)).view(box.rows, box.cols)
        for piece in pieces_of(box, tensor):
            rows = slice(piece.row - box.row, piece.row - box.row + piece.rows)
            target[rows].copy_(source.read(tensor, piece))
            done += piece.rows * piece.cols
            progress(done, total)


def pieces_of(box: Box, tensor: CanonicalTensor) -> Iterator[Box]:
    """A box by rows, each piece from at most `PIECE_ELEMENTS` elements of whole rows."""
    step = max(PIECE_ELEMENTS // tensor.cols, 1)
    for row in range(box.row, box.row + box.rows, step):
        yield replace(box, row=row, rows=min(step, box.row + box.rows - row))


def block_box(blocks: Blocks, index: int, tensor: CanonicalTensor) -> Box:
    """The rectangle of the canonical tensor that a block holds."""
    row, col = divmod(int(blocks.canonical_start[index]), tensor.cols)
    rows, cols = int(blocks.rows[index]), int(blocks.cols[index])
    if col + cols > tensor.cols:  # whole rows, given as one run
        assert rows == 1
        assert col == 0
        assert cols % tensor.cols == 0
        rows, cols = cols // tensor.cols, tensor.cols
    return Box(row=row, rows=rows, col=col, cols=cols)


def block_view(flat: Tensor, blocks: Blocks, index: int) -> Tensor:
    """A block within its parameter's flat storage, [rows, cols]."""
    return flat.as_strided(
        (int(blocks.rows[index]), int(blocks.cols[index])),
        (int(blocks.row_stride[index]), 1),
        flat.storage_offset() + int(blocks.start[index]),
    )
