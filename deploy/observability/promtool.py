"""Prometheus' own checker of rules: where it is, and how to get it without installing anything."""

import shutil
from pathlib import Path

from deploy.local.debian_packages import unpack

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "prometheus"
PACKAGE = "prometheus"


def find_promtool(cache: Path = CACHE) -> Path | None:
    """The promtool on the PATH, else the fetched one; None where there is neither."""
    found = shutil.which("promtool")
    fetched = cache / "usr" / "bin" / "promtool"
    if found:
        return Path(found)
    return fetched if fetched.exists() else None


def fetch_promtool(cache: Path = CACHE) -> Path:
    """Download the distribution's into `cache`.

    Raises:
        PackagesNotFound: this is no Debian or Ubuntu, or they cannot be reached.
    """
    unpack([PACKAGE], cache)
    found = find_promtool(cache)
    assert found is not None, "the package has promtool"
    return found
