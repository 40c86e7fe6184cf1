"""Layouts: which process holds which part of a model."""

from dataclasses import dataclass
from enum import Enum

from realloc.core.errors import InvalidInput
from realloc.core.strategy import ParallelStrategy


class LayoutKind(Enum):
    """Whose rules decide how a rank stores its parameters."""

    HUGGINGFACE = "huggingface"
    MEGATRON = "megatron"
    VLLM = "vllm"
    FSDP = "fsdp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model spread over devices by the rules of one engine.

    Rank ``r`` of ``strategy`` lives on ``devices[r]``.
    """

    kind: LayoutKind
    strategy: ParallelStrategy
    devices: tuple[int, ...]
    """Global device ids in rank order, one per rank."""

    def __post_init__(self) -> None:
        if len(self.devices) != self.strategy.num_ranks:
            raise InvalidInput.at(
                "devices",
                f"has {len(self.devices)} devices and {self.strategy} needs "
                f"{self.strategy.num_ranks}",
            )
        if len(set(self.devices)) != len(self.devices):
            raise InvalidInput.at("devices", "names a device twice")

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.strategy}@{','.join(map(str, self.devices))}"
