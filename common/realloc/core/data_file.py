"""JSON-lines data files: checked once, then read by row number."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realloc.core.errors import InvalidInput, Problem, raise_problems

_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataFile:
    """Where each row of a JSON-lines file begins. Blank lines are not rows."""

    path: str
    offsets: Sequence[int]
    """Byte offset of each row."""
    lengths: Sequence[int]
    """Characters of each row's required fields: work is balanced and predicted by them."""

    @property
    def num_rows(self) -> int:
        return len(self.offsets)

    @staticmethod
    def scan(path: str, *, required: Sequence[str] = ("prompt",)) -> "DataFile":
        """Read a file once and check every line.

        Raises:
            InvalidInput: the file cannot be read, has no rows, or has broken lines: each is
                named as ``path:line``.
        """
        offsets, lengths = array("q"), array("q")
        problems: list[Problem] = []
        try:
            with open(path, "rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    if line.strip():
                        length, problem = _check_line(line, required)
                        if problem and len(problems) < _MAX_PROBLEMS:
                            problems.append(Problem(f"{path}:{number}", problem))
                        offsets.append(offset)
                        lengths.append(length)
                    offset += len(line)
        except OSError as error:
            raise InvalidInput.at(path, f"cannot be read: {error.strerror}") from error
        raise_problems(problems)
        if not offsets:
            raise InvalidInput.at(path, "has no rows")
        return DataFile(path=path, offsets=offsets, lengths=lengths)

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows with these numbers, in this order.

        Raises:
            InvalidInput: a row number is out of range, or the file has changed.
        """
        found: list[dict[str, Any]] = []
        try:
            with open(self.path, "rb") as file:
                for row in rows:
                    if not 0 <= row < self.num_rows:
                        raise InvalidInput.at(self.path, f"has no row {row}")
                    file.seek(self.offsets[row])
                    found.append(json.loads(file.readline()))
        except (OSError, ValueError) as error:
            raise InvalidInput.at(
                self.path, f"has changed since it was checked: {error}"
            ) from error
        return found


def _check_line(line: bytes, required: Sequence[str]) -> tuple[int, str]:
    """Characters of the required fields, and what is wrong with the line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return 0, f"is not JSON: {error}"
    if not isinstance(row, dict):
        return 0, f"is a JSON {type(row).__name__}; each line must be an object"
    for name in required:
        if not isinstance(row.get(name), str):
            return 0, f"needs a text field {name!r}"
    return sum(len(row[name]) for name in required), ""


def checked_folder(path: str, field: str, *, weights: bool) -> Path:
    """A Hugging Face folder that has what it must have.

    Raises:
        InvalidInput: the folder, config.json, tokenizer.json or (where asked) the
            safetensors are missing; `field` is the path that the user sees.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InvalidInput.at(field, f"{path} is not a folder")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if weights and not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    raise_problems(Problem(field, f"{path} has no {name}") for name in missing)
    return folder
