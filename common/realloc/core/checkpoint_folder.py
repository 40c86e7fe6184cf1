"""Checkpoints for resume on the shared file system.

    <folder>/iteration-00000004/           a checkpoint: what a job needs to go on after it
        manifest.json                      `Manifest`: what is in it
        rank-00000.safetensors             what rank 0 of the job's world wrote
        ...                                whatever else the writer added
        COMPLETE                           written last: without it the checkpoint does not count
    <folder>/.iteration-00000006.partial/  one that is being written

A checkpoint becomes visible by a rename, and counts once its marker is there and every file has
the size that the manifest says.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from realloc.core.errors import InvalidInput
from realloc.plain_data import ConfigError, read

FORMAT = 1
"""Version of what this module describes."""
MANIFEST = "manifest.json"
MARKER = "COMPLETE"
_NAME = re.compile(r"iteration-(\d{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file of a checkpoint."""

    name: str
    bytes: int
    sha256: str
    """Of its content, 64 hexadecimal digits, as ``sha256sum`` prints them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is in a checkpoint, and where."""

    format: int = FORMAT
    job_id: str
    """Job that wrote it."""
    iteration: int
    """Iterations that had ended; the next one follows from the seed and this number."""
    weight_versions: Mapping[str, int]
    """Optimizer steps of each trained model."""
    kl_coefficient: float
    """Of the iteration to come."""
    layouts: Mapping[str, str]
    """Layout of each trained model when it was saved, for people."""
    architectures: Mapping[str, Mapping[str, object]]
    """`ModelArchitecture` of each trained model, as plain values."""
    data_rows: int
    """Rows of the data file."""
    files: tuple[SavedFile, ...]
    """One per rank of the job's world, in order."""
    tensors: Mapping[str, tuple[int, ...]]
    """By ``model/tensor``: numbers of the files that hold pieces of it."""

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a folder holds."""

    newest: Checkpoint | None
    """The complete checkpoint of the highest iteration."""
    broken: tuple[str, ...] = ()
    """Newer ones that do not count, each with the reason."""


class CheckpointFolder:
    """The checkpoints of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, iteration: int) -> Path:
        """An empty folder in which a checkpoint is written; what others left there is removed."""
        self._remove_partial()
        partial = self._partial(iteration)
        partial.mkdir(parents=True)
        return partial

    def commit(self, manifest: Manifest) -> Path:
        """Make what was written a checkpoint; one of the same iteration is replaced."""
        partial, final = self._partial(manifest.iteration), self._final(manifest.iteration)
        text = json.dumps(asdict(manifest), indent=1, sort_keys=True)
        _write_durably(partial / MANIFEST, text)
        _remove(final)
        partial.rename(final)
        _sync_folder(self.path)
        _write_durably(final / MARKER, f"{manifest.iteration}\n")
        _sync_folder(final)
        return final

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` complete checkpoints, and broken ones before them."""
        paths = self._paths()
        complete = [path for path in paths if _is_complete(path)]
        oldest_kept = min(complete[:keep], default=None)
        for path in paths:
            if path not in complete[:keep] and (oldest_kept is None or path < oldest_kept):
                _remove(path)

    def look(self) -> Listing:
        """The newest complete checkpoint; sizes are compared, contents are not read."""
        broken: list[str] = []
        for path in self._paths():
            try:
                return Listing(newest=open_checkpoint(path), broken=tuple(broken))
            except InvalidInput as error:
                broken.append(str(error))
        return Listing(newest=None, broken=tuple(broken))

    def num_bytes(self) -> int:
        """Bytes of everything in the folder."""
        files = self.path.rglob("*") if self.path.is_dir() else ()
        return sum(file.stat().st_size for file in files if file.is_file())

    def _paths(self) -> list[Path]:
        """Folders of checkpoints, complete or not, newest first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def _final(self, iteration: int) -> Path:
        return self.path / f"iteration-{iteration:08d}"

    def _partial(self, iteration: int) -> Path:
        return self.path / f".iteration-{iteration:08d}.partial"

    def _remove_partial(self) -> None:
        for path in self.path.glob(".iteration-*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def open_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint.

    Raises:
        InvalidInput: it is not complete; the message says why.
    """
    if not (path / MARKER).is_file():
        raise InvalidInput.at(str(path), f"was not finished: it has no file {MARKER}")
    try:
        manifest = read(Manifest, json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, ConfigError) as error:
        raise InvalidInput.at(str(path / MANIFEST), f"cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise InvalidInput.at(
            str(path / MANIFEST), f"has format {manifest.format}; this version reads {FORMAT}"
        )
    for file in manifest.files:
        _check_size(path / file.name, file)
    return Checkpoint(path=path, manifest=manifest)


def _check_size(path: Path, file: SavedFile) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InvalidInput.at(str(path), f"cannot be read: {error.strerror}") from error
    if size != file.bytes:
        raise InvalidInput.at(str(path), f"has {size} bytes and had {file.bytes} when written")


def _is_complete(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except InvalidInput:
        return False
    return True


def _remove(path: Path) -> None:
    """The marker goes first, so that half of a checkpoint never counts."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make a rename within a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
