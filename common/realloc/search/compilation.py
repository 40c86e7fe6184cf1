"""Compilation of the hot functions: once per machine and user, then read from a cache.

Compiled functions are kept under ``$NUMBA_CACHE_DIR`` where that is set, else under
``$XDG_CACHE_HOME/realloc/numba`` (``~/.cache/realloc/numba``), else, where that cannot be
written, in the directory for temporary files. The folder carries a digest of this package's
sources: numba looks only at the file of the function itself, not at those it inlines.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba  # type: ignore[import-untyped]  # numba ships no types
from numba.core import config  # type: ignore[import-untyped]  # the same

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function without the interpreter, cached on disk.

    Floating-point arithmetic keeps IEEE order, as exact equality of simulators needs; no
    infinity or NaN is assumed away.
    """
    return cast(Callable[P, R], numba.njit(cache=True, error_model="numpy")(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Like `compiled`, for a function that only compiled ones call and that they take in whole.

    A space is some sixty numbers, which a call would copy.
    """
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "forceinline": True}
    return cast(Callable[P, R], numba.njit(**options)(function))


def _use_cache_directory() -> None:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    config.CACHE_DIR = str(_cache_root() / _digest_of_sources())


def _cache_root() -> Path:
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(home) / "realloc" / "numba"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):  # no home directory, or one that cannot be written
        pass
    root = Path(tempfile.gettempdir()) / f"realloc-numba-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    # Cached code is loaded and run: never from a folder that someone else has put there.
    return root if root.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp())


def _digest_of_sources() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_use_cache_directory()
