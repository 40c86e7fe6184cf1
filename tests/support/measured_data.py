"""Where published measurements lie that are not part of the repository."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).parents[3] / "shared" / "data"


def measured_file(name: str) -> Path:
    """A file of $REALLOC_DATA, or of shared/data beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("REALLOC_DATA", _BESIDE_THE_CHECKOUT))
    path = folder / name
    if not path.exists():
        pytest.skip(f"measured data {name} is not in {folder}; set REALLOC_DATA")
    return path
