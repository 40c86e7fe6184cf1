"""Reads the training state of a job that its ranks wrote (`services.trainer.snapshot`).

Reading starts from the rectangles that a rank wants, so the layout may be another one.
"""

import base64
import hashlib
from functools import cached_property

import torch
from torch import Tensor

from realloc.core.checkpoint_folder import Checkpoint
from realloc.core.errors import InvalidInput
from realloc.reallocation.families import CanonicalTensor
from services.trainer.pieces import parse_piece_name
from services.trainer.safetensors_reader import SafetensorsReader
from services.trainer.snapshot import RANDOM_STATE
from services.trainer.weights import Box


class SavedState:
    """Reads what all ranks wrote; files are opened when something of them is wanted."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self.manifest = checkpoint.manifest
        self._files: dict[int, _PiecesFile] = {}

    def verify(self, rank: int, num_ranks: int) -> None:
        """Compare the content of this rank's share of the files with their digests.

        Raises:
            InvalidInput: a file cannot be read, or has changed since it was written.
        """
        for file in self.manifest.files[rank::num_ranks]:
            path = self._path / file.name
            try:
                with path.open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise InvalidInput.at(str(path), f"cannot be read: {error.strerror}") from error
            if found != file.sha256:
                raise InvalidInput.at(
                    str(path),
                    "has changed since it was written: its sha256 is another than the manifest's; "
                    f"remove {self._path.name} to resume from the checkpoint before it",
                )

    def read(self, model_id: str, kind: str, tensor: CanonicalTensor, box: Box) -> Tensor:
        """A rectangle of a tensor's weights or moments, float32 [rows, cols].

        Raises:
            InvalidInput: the checkpoint lacks a part of it.
        """
        values = torch.empty(box.rows, box.cols)
        missing = box.rows * box.cols
        for number in self.manifest.tensors.get(f"{model_id}/{tensor.name}", ()):
            missing -= self._file(number).copy(f"{model_id}/{kind}/{tensor.name}", box, values)
            if not missing:
                return values
        raise InvalidInput.at(
            str(self._path), f"lacks {missing} elements of {model_id}/{kind}/{tensor.name}"
        )

    def random_state(self, rank: int) -> bytes | None:
        """What a rank's generator was at; None where the world had no such rank."""
        if rank >= len(self.manifest.files):
            return None
        return base64.b64decode(self._file(rank).metadata[RANDOM_STATE])

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _file(self, number: int) -> "_PiecesFile":
        if number not in self._files:
            self._files[number] = _PiecesFile(self._path / self.manifest.files[number].name)
        return self._files[number]


class _PiecesFile(SafetensorsReader):
    """One rank's file, and where its pieces lie."""

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[str, Box]]]:
        found: dict[str, list[tuple[str, Box]]] = {}
        for name, stored in self.tensors.items():
            tensor, row, col = parse_piece_name(name)
            rows, cols = stored.shape
            found.setdefault(tensor, []).append((name, Box(row=row, rows=rows, col=col, cols=cols)))
        return found

    def copy(self, tensor: str, wanted: Box, values: Tensor) -> int:
        """Copy what the file has of a rectangle into its place; returns how many elements."""
        copied = 0
        for name, box in self._pieces.get(tensor, ()):
            top, left = max(box.row, wanted.row), max(box.col, wanted.col)
            bottom = min(box.row + box.rows, wanted.row + wanted.rows)
            right = min(box.col + box.cols, wanted.col + wanted.cols)
            if top < bottom and left < right:
                rows, cols = bottom - top, right - left
                values[
                    top - wanted.row : bottom - wanted.row, left - wanted.col : right - wanted.col
                ] = self.read(name, top - box.row, rows, left - box.col, cols)
                copied += rows * cols
        return copied
