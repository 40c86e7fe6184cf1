"""Configuration of the scheduler."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig(ServiceConfig):
    """Queues jobs, runs their iterations, tells clients how far they are."""

    service: ClassVar[str] = "scheduler"

    num_nodes: int = 1
    """Nodes of the cluster."""
    devices_per_node: int = 1
    """Devices of each node."""
    device_kind: str = "cpu"
    """Hardware of the devices, a preset of the cost model."""
    device_memory_bytes: int = 4 << 30
    """Memory of one device."""
    reward_roots: tuple[str, ...] = (".",)
    """Folders that reward functions may lie in."""
    search_seconds: float = 5.0
    """Longest search for a plan."""
    pause_seconds: float = 0.0
    """Seconds that jobs with a checkpoint folder get to end their iteration, to be saved and to
    pause, once this process was asked to stop. 0 stops them at once, and the next scheduler lets
    them recover: right where others take over, or where it is only restarted."""
    member_timeout_seconds: float = 60.0
    """Longest wait for the processes of a job's devices."""
    recovery_timeout_seconds: float = 1800.0
    """Longest wait for them where a job with checkpoints has lost one; it keeps its devices."""
