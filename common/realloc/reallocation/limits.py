"""How much of a transfer may be in flight at once."""

from dataclasses import dataclass
from enum import Enum

from realloc.core.errors import InvalidInput, Problem, raise_problems


class Buffers(Enum):
    """Whether a process's source and destination parameters may share memory."""

    SEPARATE = "separate"
    """Received bytes overwrite nothing that is still to be sent."""
    SHARED = "shared"
    """They may overlap anyhow: every source parameter is packed, for oneself as well, before
    anything is unpacked. All of a process's bytes must fit its staging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """Bounds that the schedule of a plan keeps, for every endpoint and round.

    Messages to oneself count for nothing where buffers are separate: they need no staging.
    """

    staging_bytes: int = 1 << 30
    """Bytes that one endpoint sends in one round, and bytes that it receives in one. Every round
    costs each endpoint some work. (An executor moves a round in chunks, so that it needs much
    less memory for staging.)"""
    forward_bytes: int = 64 << 20
    """The same in plans where endpoints pass on what they receive: that waits for two rounds, so
    these are short."""
    least_run_bytes: int = 2 << 20
    """Runs of memory below this are packed together with their neighbours: where processes take
    turns on their cores, an operation more costs as much as copying 1 MiB on each side."""
    max_operations: int = 256
    """Messages that one endpoint sends plus receives in one round. NCCL 2.30 hangs on
    thousands."""
    buffers: Buffers = Buffers.SEPARATE

    def __post_init__(self) -> None:
        raise_problems(
            Problem(name, f"is {getattr(self, name)} and must be at least {least}")
            for name, least in (
                ("staging_bytes", 8 * self.max_operations),
                ("forward_bytes", 8 * self.max_operations),
                ("least_run_bytes", 1),
                ("max_operations", 2),
            )
            if getattr(self, name) < least
        )


ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Element types that a transfer can move."""


def element_bytes(dtype: str) -> int:
    """Bytes of one element.

    Raises:
        InvalidInput: the type is unknown.
    """
    if dtype not in ELEMENT_BYTES:
        raise InvalidInput.at("dtype", f"{dtype!r} is unknown; known: {', '.join(ELEMENT_BYTES)}")
    return ELEMENT_BYTES[dtype]
