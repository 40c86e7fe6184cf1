"""Compilation of the hot functions: once per machine and user, then read from a cache.

numba keeps compiled functions under ``$NUMBA_CACHE_DIR`` where that is set, else under
``$XDG_CACHE_HOME/realloc/numba`` (``~/.cache/realloc/numba``), else, where that cannot be
written, in the directory for temporary files.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core import config as numba_config

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function without the interpreter, cached on disk.

    Floating-point arithmetic keeps IEEE order, as exact equality of simulators needs; no
    infinity or NaN is assumed away.
    """
    return cast(Callable[P, R], numba.njit(cache=True, error_model="numpy")(function))


def _use_cache_directory() -> None:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = root / "realloc" / "numba"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        directory = Path(tempfile.gettempdir()) / f"realloc-numba-{os.getuid()}"
    settings: Any = numba_config
    settings.CACHE_DIR = str(directory)


_use_cache_directory()
