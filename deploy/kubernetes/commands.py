"""Runs the command-line tools that a deployment needs, and says what each of them does."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from realloc.core.errors import NotFound, Unavailable

BUILDERS = ("docker", "podman", "buildah")
"""Image builders that take the same arguments, in the order of preference."""


class Run(Protocol):
    """Runs a command; its standard output."""

    def __call__(
        self, command: Sequence[str], *, stdin: str | None = None, timeout_seconds: float = 120.0
    ) -> str: ...


def run(command: Sequence[str], *, stdin: str | None = None, timeout_seconds: float = 120.0) -> str:
    """Run a command whose messages go to this process's standard error.

    Raises:
        NotFound: there is no such command.
        Unavailable: it failed or took too long.
    """
    text = " ".join(command)
    try:
        done = subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, text=True, timeout=timeout_seconds
        )
    except FileNotFoundError:
        raise NotFound(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{text}` did not end within {timeout_seconds:g} s") from None
    if done.returncode != 0:
        raise Unavailable(f"`{text}` failed with status {done.returncode}")
    return done.stdout


def find_kubectl(which: Callable[[str], str | None] = shutil.which) -> str:
    """The kubectl on the PATH, else that of this environment (make setup installs it).

    Raises:
        NotFound: there is none.
    """
    ours = Path(sys.executable).parent / "kubectl"
    found = which("kubectl") or (str(ours) if ours.exists() else None)
    if found is None:
        raise NotFound("kubectl is not installed; `make setup` installs one into .venv")
    return found


def find_builder(which: Callable[[str], str | None] = shutil.which) -> str:
    """An image builder.

    Raises:
        NotFound: there is none.
    """
    for name in BUILDERS:
        if which(name):
            return name
    raise NotFound(
        f"no image builder is installed ({', '.join(BUILDERS)}); install one, or build the images "
        "elsewhere and give REGISTRY, TAG and BUILD=0 (docs/deploy.md)"
    )
