"""Which hardware the nodes have, where the settings leave it open."""

import subprocess
from dataclasses import replace

from deploy.slurm.settings import SlurmSettings
from realloc.core.errors import InvalidInput
from realloc.cost.hardware import HARDWARE

_CPU_BYTES = 4 << 30


def known_devices(settings: SlurmSettings) -> SlurmSettings:
    """The settings with device kind and memory filled in, from this node's driver.

    Raises:
        InvalidInput: hardware without a preset.
    """
    if settings.gpus_per_node <= 0:
        return replace(
            settings,
            device_kind=settings.device_kind or "cpu",
            device_memory_bytes=settings.device_memory_bytes or _CPU_BYTES,
        )
    if settings.device_kind and settings.device_memory_bytes:
        return settings
    name, mebibytes = _first_gpu()
    return replace(
        settings,
        device_kind=settings.device_kind or preset_of(name),
        device_memory_bytes=settings.device_memory_bytes or mebibytes << 20,
    )


def preset_of(name: str) -> str:
    """The preset for a driver's name: ``NVIDIA A100-SXM4-40GB`` → ``A100-40``.

    Raises:
        InvalidInput: none fits.
    """
    for preset in sorted(HARDWARE, key=len, reverse=True):
        if all(part in name for part in preset.split("-")):
            return preset
    raise InvalidInput.at(
        "device_kind", f"no preset fits {name!r}; give one of {', '.join(sorted(HARDWARE))}"
    )


def _first_gpu() -> tuple[str, int]:
    """Name and MiB of memory of this node's first GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput.at(
            "device_kind", f"is not given and nvidia-smi does not tell it: {error}"
        ) from error
    name, _, mebibytes = shown.stdout.splitlines()[0].partition(", ")
    return name, int(mebibytes)
