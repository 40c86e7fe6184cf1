"""Search problems as ``.npz`` files: numpy arrays by the names of DESIGN section 7."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput, NotFound, Problem, raise_problems
from realloc.search.problem import INT_ARRAYS, SearchProblem

_SCALARS = ("num_devices", "device_memory_bytes")
_REQUIRED = (*_SCALARS, "call_names", *INT_ARRAYS, "option_seconds")
_REALLOCATION = re.compile(r"realloc_seconds_(\d+)")


def save_problem(problem: SearchProblem, path: Path) -> None:
    """Write a problem; the file holds arrays only, no pickle."""
    arrays: dict[str, NDArray[Any]] = {
        "num_devices": np.int64(problem.num_devices),  # type: ignore[dict-item]  # a 0-d array
        "device_memory_bytes": np.int64(problem.device_memory_bytes),  # type: ignore[dict-item]  # 0-d
        "call_names": np.array(problem.call_names, dtype=np.str_),
        "option_seconds": problem.option_seconds,
    }
    arrays |= {name: getattr(problem, name) for name in INT_ARRAYS}
    arrays |= {f"realloc_seconds_{m}": matrix for m, matrix in problem.realloc_seconds.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_problem(path: Path) -> SearchProblem:
    """Read and check a problem.

    Raises:
        NotFound: no such file.
        InvalidInput: not an ``.npz`` file, or arrays that are missing, of a wrong type or wrong.
    """
    arrays = _read_arrays(path)
    raise_problems(
        Problem(name, f"is missing from {path}") for name in _REQUIRED if name not in arrays
    )
    raise_problems(_type_problems(arrays))
    matrices = {
        int(match[1]): array
        for name, array in arrays.items()
        if (match := _REALLOCATION.fullmatch(name))
    }
    return SearchProblem(
        num_devices=int(arrays["num_devices"]),
        device_memory_bytes=int(arrays["device_memory_bytes"]),
        call_names=tuple(str(name) for name in arrays["call_names"]),
        option_seconds=arrays["option_seconds"],
        realloc_seconds=matrices,
        **{name: arrays[name] for name in INT_ARRAYS},
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InvalidInput.at(str(path), "is one .npy array and not an .npz archive")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput.at(str(path), f"is not a readable .npz archive: {reason}") from error


def _type_problems(arrays: dict[str, NDArray[Any]]) -> list[Problem]:
    found = []
    for name in _SCALARS:
        array = arrays[name]
        if array.size != 1 or array.dtype.kind not in "iu":
            found.append(Problem(name, f"is {array.dtype} {list(array.shape)}; one int64 needed"))
    for name in INT_ARRAYS:
        array = arrays[name]
        if array.dtype.kind not in "iu" and array.size:
            found.append(Problem(name, f"is {array.dtype} and must be int64"))
    if arrays["call_names"].ndim != 1 or arrays["call_names"].dtype.kind != "U":
        array = arrays["call_names"]
        found.append(
            Problem("call_names", f"is {array.dtype} {list(array.shape)}; text [C] needed")
        )
    for name, array in arrays.items():
        is_seconds = name == "option_seconds" or _REALLOCATION.fullmatch(name)
        if is_seconds and array.dtype.kind not in "iuf":
            found.append(Problem(name, f"is {array.dtype} and must be float64"))
    return found
