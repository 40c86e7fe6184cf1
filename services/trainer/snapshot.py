"""A snapshot: what one rank has to save of a job's training state, copied to host memory.

The copy takes the time of a move to the host; the job goes on while it is being written to a
file of pieces (`services.trainer.pieces`). `services.trainer.saved_state` reads it back.
"""

import base64
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from realloc.core.checkpoint_folder import SavedFile
from realloc.core.errors import ResourceExhausted, Unavailable
from realloc.reallocation.families import CanonicalTensor
from services.trainer.pieces import parse_piece_name
from services.trainer.safetensors_writer import file_header

RANDOM_STATE = "random_state"
"""Key of the file's metadata: the state of the rank's random number generator, base64."""
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """What one rank has to save, in host memory."""

    pieces: Mapping[str, Tensor]
    """By name, float32 [rows, cols]; views of the copies."""
    random_state: bytes
    """State of the rank's random number generator."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the pieces."""
        return sum(4 * piece.numel() for piece in self.pieces.values())

    @property
    def tensors(self) -> tuple[str, ...]:
        """``model/tensor`` of everything that the snapshot has pieces of."""
        found: dict[str, None] = {}
        for name in self.pieces:
            model, _, tensor = parse_piece_name(name)[0].split("/", 2)
            found[f"{model}/{tensor}"] = None
        return tuple(found)


def write_snapshot(snapshot: Snapshot, path: Path, stop: threading.Event) -> SavedFile:
    """Write a snapshot as a safetensors file and wait until the disk has it.

    Args:
        stop: set it to give up between two chunks.

    Raises:
        ResourceExhausted: the disk is full.
        Unavailable: the file cannot be written, or `stop` was set.
    """
    digest, size = hashlib.sha256(), 0
    try:
        # Another host made the folder; a network file system may not show it here yet.
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in _chunks(snapshot):
                if stop.is_set():
                    raise Unavailable(f"{path} was given up before it was whole")
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResourceExhausted(f"{path} cannot be written: {error.strerror}") from error
    return SavedFile(name=path.name, bytes=size, sha256=digest.hexdigest())


def _chunks(snapshot: Snapshot) -> Iterator[memoryview | bytes]:
    """The bytes of the file; strided pieces are packed chunk by chunk."""
    announced = [
        CanonicalTensor(name=name, shape=tuple(piece.shape))
        for name, piece in snapshot.pieces.items()
    ]
    yield file_header(announced, {RANDOM_STATE: base64.b64encode(snapshot.random_state).decode()})
    for piece in snapshot.pieces.values():
        rows = max(1, _CHUNK_BYTES // (4 * piece.shape[1]))
        for first in range(0, len(piece), rows):
            packed = piece[first : first + rows].contiguous().numpy().astype("<f4", copy=False)
            yield packed.reshape(-1).view(np.uint8).data
