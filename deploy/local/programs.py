"""The command line of each service, the same on a laptop and on the nodes of a cluster."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deploy.local.supervisor import Program

_ROOT = Path(__file__).resolve().parent.parent.parent


def service_program(
    kind: str,
    run_dir: Path,
    fields: Mapping[str, str],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Program:
    """A service to supervise, logging to ``run_dir/logs``; a shard is named by its device.

    Args:
        kind: the package below ``services``.
        fields: values of the service's configuration, by field name.
        environment: on top of the supervisor's own.
    """
    name = f"{kind}-{fields['device']}" if "device" in fields else kind
    return Program(
        name=name,
        command=[
            sys.executable,
            "-m",
            f"services.{kind}",
            *(f"--{key}={value}" for key, value in fields.items()),
        ],
        log=run_dir / "logs" / f"{name}.log",
        # One thread per process: more of them spin on each other's cores.
        environment={
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join((str(_ROOT / "common"), str(_ROOT))),
            **environment,
        },
    )
