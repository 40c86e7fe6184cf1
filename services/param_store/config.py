"""Configuration of the param-store."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamStoreConfig(ServiceConfig):
    """Knows models, layouts and versions; moves weights between layouts."""

    service: ClassVar[str] = "param_store"

    max_cached_plans: int = 64
    """Transfer plans kept; the least recently used goes first."""
    max_waiting: int = 256
    """Reallocations that may wait for their devices; further ones are refused."""
    device_kind: str = "cpu"
    """Hardware of the devices, a preset of the cost model: for predicted seconds."""
