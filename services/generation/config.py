"""Configuration of a generation replica."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig(ServiceConfig):
    """One vLLM engine and the user's reward function."""

    service: ClassVar[str] = "generation"

    device: int = 0
    """Global id of the first device that this replica owns."""
    node: int = 0
    """Index of the node that holds the device."""
    kv_cache_bytes: int = 128 << 20
    """Key-value cache of each rank."""
    batch_bytes: int = 4 << 30
    """Most bytes of rollouts that wait here to be pulled."""
    staging_bytes: int = 256 << 20
    """Staging buffers of reallocations, on each rank."""
    max_requests: int = 65_536
    """Most rollouts that run or wait in the engine at the same time."""
    reward_roots: tuple[str, ...] = (".",)
    """Folders that reward functions may lie in."""
    reward_processes: int = 1
    """Reward calls that run at the same time."""
    load_seconds: float = 600.0
    """Longest time to build an engine."""

    @property
    def instance(self) -> str:
        """The name of this process."""
        return self.name or f"generation-{self.device}"
