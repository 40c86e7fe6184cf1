"""Where a usable etcd is on this machine, and how to get one without installing anything.

Standard library only: it runs before the virtual environment exists.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.local.debian_packages import PackagesNotFound, unpack

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "etcd"
PACKAGES = ("etcd-server", "etcd-client")
"""Debian's and Ubuntu's packages; the client is for people, nothing here calls it."""

WHAT_TO_DO = (
    "Install etcd 3.4.22 or later, or 3.5.6 or later (Debian 12, Ubuntu 24.04: "
    "apt-get install etcd-server), or unpack a release from https://github.com/etcd-io/etcd/releases"
    ", and name its binary in REALLOC_ETCD."
)


class EtcdNotFound(RuntimeError):
    """There is no usable etcd; the message says what was tried and what to do."""


def find_etcd(environment: Mapping[str, str] = os.environ, *, cache: Path = CACHE) -> Path:
    """The etcd to run: ``$REALLOC_ETCD``, else one on the PATH, else the fetched one.

    Raises:
        EtcdNotFound: none is there, or those that are there lose data or do not run. One that
            is named in ``$REALLOC_ETCD`` and is not usable is an error, not passed over.
    """
    problems = []
    for binary in _candidates(environment, cache):
        problem = _problem(binary)
        if problem is None:
            return binary
        problems.append(f"{binary}: {problem}.")
        if str(binary) == environment.get("REALLOC_ETCD"):
            break
    raise EtcdNotFound(" ".join(["No usable etcd found.", *problems, WHAT_TO_DO]))


def fetch_etcd(*, cache: Path = CACHE) -> Path:
    """Download the distribution's etcd into ``cache``; nothing is installed, no root needed.

    Raises:
        EtcdNotFound: this is no Debian or Ubuntu, they cannot be reached, or their etcd is one
            that loses data.
    """
    try:
        unpack(PACKAGES, cache)
    except PackagesNotFound as error:
        raise EtcdNotFound(f"No etcd found, and {error}. {WHAT_TO_DO}") from error
    return find_etcd({"PATH": ""}, cache=cache)


def refusal(version: str) -> str | None:
    """Why this version must not be used; None where it may be."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < (3, 4, 22):
        return f"etcd {version} is older than 3.4.22, members of which can disagree about the data"
    if (3, 5, 0) <= numbers <= (3, 5, 2):
        return f"etcd {version} can lose committed writes when it is killed (3.5.0 to 3.5.2)"
    return None


def _candidates(environment: Mapping[str, str], cache: Path) -> Iterator[Path]:
    named = environment.get("REALLOC_ETCD")
    if named:
        yield Path(named)
    on_path = shutil.which("etcd", path=environment.get("PATH", ""))
    if on_path:
        yield Path(on_path)
    fetched = cache / "usr" / "bin" / "etcd"
    if fetched.exists():
        yield fetched


def _problem(binary: Path) -> str | None:
    try:
        answer = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run ({error})"
    found = re.search(r"etcd Version: (\d+\.\d+\.\d+\S*)", answer.stdout)
    if found is None:
        return "does not say its version, so it is not etcd"
    return refusal(found[1])
