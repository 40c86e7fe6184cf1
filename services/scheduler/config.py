"""Configuration of the scheduler."""

from dataclasses import dataclass
from typing import ClassVar

from realloc.config import ServiceConfig
from realloc.plain_data import ConfigError, ConfigProblem


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
    output_roots: tuple[str, ...] = ()
    """Folders that jobs may write outputs and checkpoints into; empty allows every folder that
    the processes may write."""
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
    tokens_file: str = ""
    """Bearer tokens of the people who may call, as `realloc tokens create` writes them; needs
    `tls_dir`, which needs it."""

    def __post_init__(self) -> None:
        ServiceConfig.__post_init__(self)  # super() does not work in a class with slots
        if bool(self.tls_dir) != bool(self.tokens_file):
            missing, given = ("tokens_file", "tls_dir")
            if not self.tls_dir:
                missing, given = given, missing
            raise ConfigError(
                ConfigProblem(
                    missing,
                    f"is needed with {given}: people show tokens, and only over TLS; "
                    "`realloc tokens create NAME` and `realloc certs init DIR` make them",
                )
            )
