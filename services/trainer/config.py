"""Configuration of a trainer shard."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig(ServiceConfig):
    """One process per device: holds parts of many Megatron models."""

    service: ClassVar[str] = "trainer"

    device: int = 0
    """Global id of the device that this process owns."""
    node: int = 0
    """Index of the node that holds the device."""
    batch_bytes: int = 4 << 30
    """Most bytes of batches that wait here to be pulled."""
    staging_bytes: int = 256 << 20
    """Staging buffers of reallocations."""

    @property
    def instance(self) -> str:
        """The name of this process."""
        return self.name or f"trainer-{self.device}"
