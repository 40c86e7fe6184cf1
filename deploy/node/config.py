"""Configuration of a node's supervisor."""

from collections.abc import Iterator
from dataclasses import dataclass

from realloc.plain_data import ConfigError, ConfigProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Starts the shards of a node, restarts what ends, and answers for their health."""

    node: int = 0
    """Index of this node; its first device is this times `devices_per_node`."""
    devices_per_node: int = 1
    """Devices of this node, each with a trainer and a generation replica."""
    trainer_config: str = ""
    """YAML file of all trainers; empty starts none."""
    generation_config: str = ""
    """YAML file of all generation replicas; empty starts none."""
    trainer_port: int = 7100
    """Port of the node's first trainer; the others follow."""
    generation_port: int = 7200
    """Port of the node's first generation replica; the others follow."""
    shard_health_port: int = 7300
    """Health port of the first shard; the others follow: trainers first, then replicas."""
    health_port: int = 7001
    """Port where the health of all shards together is answered, in the clear."""
    health_host: str = "127.0.0.1"
    """Address to answer on; a pod is probed from outside."""
    log_dir: str = ""
    """Folder of a log file per shard; empty lets them write to this process's own output."""

    def __post_init__(self) -> None:
        problems = tuple(self._problems())
        if problems:
            raise ConfigError(*problems)

    def _problems(self) -> Iterator[ConfigProblem]:
        if self.node < 0:
            yield ConfigProblem("node", f"is {self.node}; nodes count from 0")
        if not 1 <= self.devices_per_node <= 100:
            yield ConfigProblem("devices_per_node", f"is {self.devices_per_node}; 1 to 100")
        if not (self.trainer_config or self.generation_config):
            yield ConfigProblem("trainer_config", "or generation_config is needed, or both")
