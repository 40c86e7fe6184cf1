"""What a deployment under Slurm looks like, given once and read by every process of the job."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from realloc.core.errors import Problem, raise_problems
from realloc.plain_data import read

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}|UNLIMITED")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """One Slurm job that is a whole cluster: etcd, the services, and shards on every node."""

    nodes: int = 1
    """Nodes to ask for."""
    gpus_per_node: int = -1
    """GPUs of each node; -1 asks Slurm what the partition's nodes have, 0 runs on CPUs."""
    devices_per_node: int = 1
    """On nodes without GPUs, how many devices each one plays."""
    device_kind: str = ""
    """Hardware of the devices, a preset of the cost model; empty asks the first node's driver."""
    device_memory_bytes: int = 0
    """Memory that plans may use per device; 0 takes what the device has, on CPUs 4 GiB."""
    partition: str = ""
    """Partition; empty takes Slurm's default."""
    account: str = ""
    """Account to charge; empty takes yours."""
    time: str = "04:00:00"
    """Time limit as Slurm writes it: minutes, hours:minutes:seconds, days-hours."""
    margin_seconds: int = 300
    """Seconds before the time limit at which jobs are checkpointed and this one is requeued."""
    exclusive: bool = True
    """Whole nodes; where others share them, ask for cores and memory in `sbatch_options`."""
    sbatch_options: str = ""
    """Further options for sbatch, such as ``--qos=high --reservation=rl``."""
    srun_options: str = ""
    """Further options for the srun that starts the nodes, such as ``--mpi=none``."""
    run_dir: Path = Path("run")
    """Folder that all nodes share: endpoints, logs, traces, etcd's data."""
    python: Path = Path(sys.executable)
    """Python of an environment that all nodes share."""
    etcd_endpoints: tuple[str, ...] = ()
    """An etcd that is there already, host:port; empty starts one on the first node."""
    reward_roots: tuple[str, ...] = (".",)
    """Folders that reward functions may lie in."""
    certificates: str = ""
    """Folder as `realloc certs init` makes it; empty makes one in the run folder."""
    always_encrypts: bool = False
    """TLS also where every address is loopback; elsewhere it is always on."""
    dry_run: bool = False
    """Show what would be submitted, and what Slurm says to it."""

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.nodes < 1:
            yield Problem("nodes", f"is {self.nodes} and must be at least 1")
        if self.gpus_per_node < -1:
            yield Problem("gpus_per_node", f"is {self.gpus_per_node}; -1 asks Slurm")
        if self.devices_per_node < 1:
            yield Problem("devices_per_node", f"is {self.devices_per_node} and must be at least 1")
        if not _TIME.fullmatch(self.time):
            yield Problem("time", f"is {self.time!r}; give 90, 04:00:00 or 2-00:00:00")
        if self.margin_seconds < 60:
            yield Problem("margin_seconds", f"is {self.margin_seconds}; ending takes at least 60")

    @property
    def num_local_devices(self) -> int:
        """Devices of each node, once ``gpus_per_node`` is known."""
        return self.gpus_per_node if self.gpus_per_node > 0 else self.devices_per_node

    def save(self, path: Path) -> None:
        """Write them where `read_settings` finds them."""
        path.write_text(json.dumps(asdict(self), default=str, indent=2) + "\n")


def settings_file(run_dir: Path) -> Path:
    """Where the job finds its settings."""
    return run_dir / "slurm" / "settings.json"


def read_settings(run_dir: Path) -> SlurmSettings:
    """The settings of the deployment in a folder."""
    return read(SlurmSettings, json.loads(settings_file(run_dir).read_text()))
