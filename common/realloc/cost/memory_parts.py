"""What a call's bytes on one device are for, and the table of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes on one device, while the call runs."""

    weights: int = 0
    gradients: int = 0
    """The gradient buffer."""
    optimizer: int = 0
    """Moments and master weights."""
    activations: int = 0
    """Kept for the backward pass, logits, and what a layer needs for a moment."""
    cache: int = 0
    """Keys and values."""
    shadow: int = 0
    """Copy of a generator's weights in which new ones arrive."""
    staging: int = 0
    """Buffers of reallocations."""
    process: int = 0
    """Interpreter and libraries, where they share the device's memory: on CPUs."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory_table(parts: Mapping[str, MemoryParts]) -> str:
    """MiB by call and part; parts that nobody has are left out."""
    names = [
        field.name
        for field in fields(MemoryParts)
        if any(getattr(each, field.name) for each in parts.values())
    ]
    width = max(len(name) for name in ("call", *parts))
    lines = [" ".join([f"{'call':{width}}", *(f"{name:>11}" for name in names), f"{'MiB':>9}"])]
    for call, each in parts.items():
        cells = [f"{getattr(each, name) / _MIB:11,.0f}" for name in names]
        lines.append(" ".join([f"{call:{width}}", *cells, f"{each.total / _MIB:9,.0f}"]))
    return "\n".join(lines)
