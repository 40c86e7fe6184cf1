"""Debian's and Ubuntu's packages unpacked into a folder: nothing is installed, no root needed.

Standard library only: it runs before the virtual environment exists.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

DOWNLOAD_SECONDS = 300.0
"""Longest run of one apt-get, which may have to read all package lists first."""


class PackagesNotFound(RuntimeError):
    """The packages are not to be had; the message says which command failed and why."""


def unpack(packages: Sequence[str], into: Path, *, with_dependencies: bool = False) -> None:
    """Download packages of this machine's distribution and unpack them.

    Args:
        with_dependencies: also what they need and this machine has not got.

    Raises:
        PackagesNotFound: this is no Debian or Ubuntu, or they cannot be reached.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PackagesNotFound(f"it cannot be fetched without {tool}")
    downloads = into / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    try:
        for package in _download(packages, downloads, with_dependencies=with_dependencies):
            _run(["dpkg-deb", "-x", str(package), str(into)], cwd=downloads)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _download(packages: Sequence[str], folder: Path, *, with_dependencies: bool) -> Sequence[Path]:
    """The packages, by the machine's own package lists or, where it has none, by private ones."""
    private = _private_lists(folder / "apt")
    for options in ([], private):
        try:
            if options:
                _run(["apt-get", *options, "update"], cwd=folder)
            wanted = set(packages)
            if with_dependencies:
                wanted |= _missing(packages, options, folder)
            _run(["apt-get", *options, "download", *sorted(wanted)], cwd=folder)
            break
        except PackagesNotFound:
            if options:
                raise
    return sorted(folder.glob("*.deb"))


def _missing(packages: Sequence[str], options: Sequence[str], folder: Path) -> set[str]:
    """What an installation would bring along."""
    plan = ["apt-get", *options, "-s", "install", "--no-install-recommends", *packages]
    return set(re.findall(r"^Inst (\S+)", _run(plan, cwd=folder), re.MULTILINE))


def _private_lists(folder: Path) -> list[str]:
    """Options for an apt whose lists and caches an ordinary user may write."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    options = (
        f"Dir::State::lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}",
        # Root's apt would drop to a user who may not write here.
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
    )
    return [word for option in options for word in ("-o", option)]


def _run(command: Sequence[str], *, cwd: Path) -> str:
    try:
        result = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise PackagesNotFound(f"{command[0]} did not end within {DOWNLOAD_SECONDS:g} s") from None
    if result.returncode != 0:
        raise PackagesNotFound(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout
