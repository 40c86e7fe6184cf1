"""Whether a path that a user gave lies where it may."""

from collections.abc import Sequence
from pathlib import Path


def lies_below(path: Path, roots: Sequence[Path]) -> bool:
    """True where a path, symbolic links resolved, is one of the folders or below one."""
    where = path.resolve()
    return any(where.is_relative_to(root.resolve()) for root in roots)
