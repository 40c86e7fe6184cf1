"""Compilation of the hot functions: once per machine and user, then read from a cache.

Compiled functions are kept under ``$NUMBA_CACHE_DIR`` where that is set, else under
``$XDG_CACHE_HOME/realloc/numba`` (``~/.cache/realloc/numba``), else, where that cannot be
written, in the directory for temporary files, else nowhere. The folder carries a digest of the
sources that are compiled: numba looks only at the file of the function itself, not at those it
inlines.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba  # type: ignore[import-untyped]  # numba ships no types
from numba.core import config, types  # type: ignore[import-untyped]  # the same
from numba.extending import intrinsic  # type: ignore[import-untyped]  # the same

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function without the interpreter, cached on disk.

    Floating-point arithmetic keeps IEEE order, as exact equality of simulators needs; no
    infinity or NaN is assumed away.
    """
    options: dict[str, Any] = {"cache": _CACHES, "error_model": "numpy"}
    return cast(Callable[P, R], numba.njit(**options)(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Like `compiled`, for a function that only compiled ones call and that they take in whole.

    A space is some sixty numbers, which a call would copy.
    """
    options: dict[str, Any] = {"cache": _CACHES, "error_model": "numpy", "forceinline": True}
    return cast(Callable[P, R], numba.njit(**options)(function))


@numba.extending.register_jitable  # type: ignore[untyped-decorator]  # numba ships no types
def bare(array: A) -> A:
    """The elements of a one-dimensional array without what surrounds them, for compiled code.

    Every index into an array is looked at: a negative one counts from the end. That is half of
    what reading flat tables costs. Here none may be negative, and the caller keeps the array.
    """
    found: A = _bare(array)
    return found


@intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def _bare(_: Any, array: Any) -> Any:
    def address(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, values[0]).data

    if isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C":
        return types.CPointer(array.dtype)(array), address
    return None


def _use_cache_directory() -> bool:
    """Point numba to a folder; False where there is none, so that nothing can be kept."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return True
    root = _cache_root()
    if root is not None:
        config.CACHE_DIR = str(root / _digest_of_sources())
    return root is not None


def _cache_root() -> Path | None:
    """A folder of this user's that can be written; None where there is none."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(home) / "realloc" / "numba"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):  # no home directory, or one that cannot be written
        pass
    try:
        root = Path(tempfile.gettempdir()) / f"realloc-numba-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        # Cached code is loaded and run: never from a folder that someone else has put there.
        return root if root.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp())
    except OSError:  # no folder for temporary files, or none that can be written
        return None


def _digest_of_sources() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if b"realloc.search.compilation" in source or b"(NamedTuple)" in source:
            digest.update(source)
    return digest.hexdigest()[:16]


_CACHES = _use_cache_directory()
