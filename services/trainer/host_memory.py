"""Freed tensors go back to the system, so that a process is as large as what lives in it."""

import ctypes

_M_MMAP_THRESHOLD = -3
"""glibc's mallopt(3): blocks from so many bytes on are mapped, and unmapped when freed."""
_THRESHOLD_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Have malloc map large blocks singly; does nothing where the C library is another.

    By default glibc raises its threshold to the largest block that was ever freed and keeps
    the holes: a trainer on a CPU grew to twice its tensors.
    """
    try:
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    except (OSError, AttributeError):
        return
