"""Configuration of plan-search."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSearchConfig(ServiceConfig):
    """Finds execution plans."""

    service: ClassVar[str] = "plan_search"

    max_search_seconds: float = 600.0
    """Longest search that a request may ask for."""
    max_searches: int = 2
    """Searches that may run at once; a further one is refused."""
    max_memory_bytes: int = 4 << 30
    """Memory that one search may need for its arrays."""
    kept_answers: int = 64
    """Final answers that are kept for requests that come again."""
    profile: str = ""
    """File of a profile of the devices (`tools/profile_hardware.py`), for requests that name none;
    empty for the preset of their kind."""
