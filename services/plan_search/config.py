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
    profile: str = ""
    """File of a profile of the cluster's devices (`tools/profile_hardware.py`); empty for the
    preset of their kind."""
