"""How much of a transfer may be in flight at once."""

from dataclasses import dataclass

from realloc.core.errors import InvalidInput, Problem, raise_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """Bounds that the schedule of a plan keeps, for every endpoint and round."""

    max_message_bytes: int = 32 << 20
    """Longest message; larger ones are split by rows."""
    staging_bytes: int = 256 << 20
    """Bytes that one endpoint sends in one round, and bytes that it receives in one."""
    max_operations: int = 128
    """Messages that one endpoint sends plus receives in one round. NCCL 2.30 hangs on
    thousands."""

    def __post_init__(self) -> None:
        raise_problems(
            Problem(name, f"is {getattr(self, name)} and must be at least {least}")
            for name, least in (
                ("max_message_bytes", 4),
                ("staging_bytes", self.max_message_bytes),
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
