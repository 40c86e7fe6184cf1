"""Which processes a node runs: their ports, devices and what they see of the machine."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.supervisor import Program
from deploy.node.config import NodeConfig

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One process of the node."""

    kind: str
    device: int
    """Global id."""
    health_port: int
    program: Program


def shards_of(config: NodeConfig) -> tuple[Shard, ...]:
    """Every shard of a node, trainers first."""
    kinds = [
        (kind, file, port)
        for kind, file, port in (
            ("trainer", config.trainer_config, config.trainer_port),
            ("generation", config.generation_config, config.generation_port),
        )
        if file
    ]
    return tuple(
        _shard(config, kind, file, port, order * config.devices_per_node, local)
        for order, (kind, file, port) in enumerate(kinds)
        for local in range(config.devices_per_node)
    )


def visible_devices(kind: str, local: int, devices_per_node: int) -> str:
    """``CUDA_VISIBLE_DEVICES`` of a shard on the node's device number ``local``.

    A trainer owns one device. A replica begins there and takes as many as its strategy says.
    """
    last = local + 1 if kind == "trainer" else devices_per_node
    return ",".join(map(str, range(local, last)))


def _shard(config: NodeConfig, kind: str, file: str, port: int, before: int, local: int) -> Shard:
    device = config.node * config.devices_per_node + local
    health_port = config.shard_health_port + before + local
    options = {
        "config": file,
        "name": f"{kind}-{device}",
        "node": str(config.node),
        "device": str(device),
        "port": str(port + local),
        "health-port": str(health_port),
    }
    program = Program(
        name=f"{kind}-{device}",
        command=[
            sys.executable,
            "-m",
            f"services.{kind}",
            *(f"--{key}={value}" for key, value in options.items()),
        ],
        log=Path(config.log_dir) / f"{kind}-{device}.log" if config.log_dir else None,
        environment=_environment(kind, local, config.devices_per_node),
    )
    return Shard(kind=kind, device=device, health_port=health_port, program=program)


def _environment(kind: str, local: int, devices_per_node: int) -> Mapping[str, str]:
    path = (str(_ROOT / "common"), str(_ROOT), os.environ.get("PYTHONPATH", ""))
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, dict.fromkeys(path))),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # The numbering of nvidia-smi, so that place and index of a device mean the same.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": visible_devices(kind, local, devices_per_node),
    }
