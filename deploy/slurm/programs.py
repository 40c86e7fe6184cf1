"""The processes of a Slurm deployment: what runs on the first node, what on every node."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdMember
from deploy.local.programs import service_program
from deploy.local.supervisor import Program
from deploy.slurm.certificates import tokens_file
from deploy.slurm.settings import SlurmSettings

_SHARD_DRAIN_SECONDS = "5"
_NODES_STOP_SECONDS = 25.0
"""The nodes' own processes get 15 s to end, and srun has to hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs and whom it talks to."""

    host: str
    """Address to listen on."""
    etcd_endpoints: tuple[str, ...]
    certificates: Path | None = None
    """Folder that `realloc certs init` made; None where everything is on loopback."""

    def tls_dir(self, holder: str) -> Path | None:
        """The certificate of one kind of process."""
        return None if self.certificates is None else self.certificates / holder


def etcd_program(settings: SlurmSettings, member: EtcdMember) -> Program:
    """The one etcd of a deployment that was not given any."""
    return Program(
        name="etcd",
        command=member.command(find_etcd()),
        log=settings.run_dir / "logs" / "etcd.log",
        environment=member.environment(),
    )


def control_programs(settings: SlurmSettings, place: Place) -> list[Program]:
    """What runs once, on the first node."""
    tokens = (
        {} if place.certificates is None else {"tokens_file": str(tokens_file(place.certificates))}
    )
    services: dict[str, dict[str, str]] = {
        "plan_search": {},
        "param_store": {"device_kind": settings.device_kind},
        "scheduler": {
            "num_nodes": str(settings.nodes),
            "devices_per_node": str(settings.num_local_devices),
            "device_kind": settings.device_kind,
            "device_memory_bytes": str(settings.device_memory_bytes),
            "reward_roots": ",".join(settings.reward_roots),
            **tokens,
        },
    }
    return [
        service_program(kind, settings.run_dir, {**_common(settings, place, kind), **fields})
        for kind, fields in services.items()
    ]


def nodes_program(settings: SlurmSettings, place: Place) -> Program:
    """One task per node, each of which keeps the shards of its node running."""
    return Program(
        name="nodes",
        command=[
            "srun",
            *every_node(settings),
            "--label",
            *shlex.split(settings.srun_options),
            sys.executable,
            "-m",
            "deploy.slurm.node",
            str(settings.run_dir),
            ",".join(place.etcd_endpoints),
            str(place.certificates or ""),
        ],
        log=settings.run_dir / "logs" / "nodes.log",
        stop_seconds=_NODES_STOP_SECONDS,
    )


def every_node(settings: SlurmSettings) -> Sequence[str]:
    """Options of an srun with one task on each node, which gets the whole node."""
    options = [f"--nodes={settings.nodes}", f"--ntasks={settings.nodes}", "--ntasks-per-node=1"]
    # --overlap: the first node runs the services beside its shards.
    # --cpu-bind: the one task is a supervisor, whose processes share all cores.
    options += ["--overlap", "--cpu-bind=none", "--kill-on-bad-exit=0", "--unbuffered"]
    if settings.gpus_per_node > 0:
        options.append(f"--gpus-per-node={settings.gpus_per_node}")
    return options


def shard_programs(
    settings: SlurmSettings, place: Place, node: int, gpus: Sequence[str]
) -> list[Program]:
    """A trainer and a generation replica for each device of a node.

    Args:
        gpus: what CUDA_VISIBLE_DEVICES lists on this node; empty on CPUs.
    """
    found = []
    for local in range(settings.num_local_devices):
        device = node * settings.num_local_devices + local
        fields = {
            "drain_seconds": _SHARD_DRAIN_SECONDS,
            "device": str(device),
            "node": str(node),
        }
        trainer = {**_common(settings, place, "trainer"), **fields}
        generation = {**_common(settings, place, "generation"), **fields}
        generation["reward_roots"] = ",".join(settings.reward_roots)
        own, onwards = _visible(gpus[local : local + 1]), _visible(gpus[local:])
        found += [
            service_program("trainer", settings.run_dir, trainer, own),
            # A replica may span the devices that follow its first one.
            service_program("generation", settings.run_dir, generation, onwards),
        ]
    return found


def _visible(gpus: Sequence[str]) -> Mapping[str, str]:
    if not gpus:
        return {}
    # The numbering of nvidia-smi, and of Slurm.
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _common(settings: SlurmSettings, place: Place, kind: str) -> dict[str, str]:
    tls_dir = place.tls_dir(kind)
    return {
        **({} if tls_dir is None else {"tls_dir": str(tls_dir)}),
        "host": place.host,
        "etcd_endpoints": ",".join(place.etcd_endpoints),
        "trace_dir": str(settings.run_dir / "traces"),
    }


def folders(run_dir: Path) -> None:
    """Make what the processes write into."""
    for name in ("logs", "traces", "etcd", "slurm"):
        (run_dir / name).mkdir(parents=True, exist_ok=True)
