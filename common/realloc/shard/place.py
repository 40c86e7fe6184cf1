"""Where a shard's device sits in its machine: hardware, NUMA node, and the port of its rail.

A rail is what the same port of every node is connected to. A device's port is the InfiniBand or
RoCE adapter that shares most of its way to the processor with it; where several devices are as
near to several adapters, they take them in turn. Standard library only.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")
QUERY_SECONDS = 30.0
"""Longest run of nvidia-smi; it is slow where the driver has to be loaded first."""
_QUERY = ("index", "uuid", "pci.bus_id", "name", "memory.total")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlace:
    """What others should know of a device, and this process of its surroundings."""

    hardware: str
    """As the driver names it: NVIDIA H100 80GB HBM3."""
    memory_bytes: int
    numa_node: int | None = None
    """None where the machine has one."""
    cpus: frozenset[int] = frozenset()
    """The processors of the NUMA node; empty where that is unknown."""
    port: str = ""
    """Adapter of the device's rail: mlx5_3; empty without RDMA."""
    rail: int | None = None
    """Number of that adapter in the machine."""
    port_gigabits: float = 0.0
    """Gb/s of the adapter."""

    def labels(self) -> Mapping[str, str]:
        """What goes into the store; what is unknown is left out."""
        known = {
            "hardware": self.hardware,
            "memory_bytes": self.memory_bytes,
            "numa_node": self.numa_node,
            "port": self.port or None,
            "rail": self.rail,
            "port_gigabits": self.port_gigabits or None,
        }
        return {name: str(value) for name, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: str
    uuid: str
    path: Path
    """Its PCI device below sysfs, with all bridges before it."""
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Adapter:
    name: str
    rail: int
    path: Path
    gigabits: float


def settle_in(
    environ: Mapping[str, str] = os.environ,
    bind: Callable[[int, frozenset[int]], None] = os.sched_setaffinity,
) -> DevicePlace | None:
    """Find this process's device, the first that it sees, and run on the processors next to it.

    Returns:
        None on a machine without NVIDIA GPUs.
    """
    table = query_gpus()
    place = find_place(table, environ.get("CUDA_VISIBLE_DEVICES", "0"))
    if place is not None:
        near = place.cpus & os.sched_getaffinity(0)
        if near:
            bind(0, frozenset(near))
    return place


def query_gpus() -> str:
    """The machine's GPUs, one a line; empty where there are none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def find_place(table: str, visible: str, sysfs: Path = SYSFS) -> DevicePlace | None:
    """The place of one GPU.

    Args:
        table: what `query_gpus` gives.
        visible: indices or UUIDs as in ``CUDA_VISIBLE_DEVICES``; the first one counts.
    """
    gpus = [_gpu(line, sysfs) for line in table.splitlines() if line.count(",") == 4]
    wanted = visible.partition(",")[0].strip()
    mine = next((gpu for gpu in gpus if wanted == gpu.index or gpu.uuid.startswith(wanted)), None)
    if not wanted or mine is None:
        return None
    numa_node = _number(mine.path / "numa_node")
    adapter = _adapter_of(mine, gpus, _adapters(sysfs))
    return DevicePlace(
        hardware=mine.name,
        memory_bytes=mine.memory_bytes,
        # A machine with one node says −1.
        numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        cpus=_cpus(mine.path / "local_cpulist"),
        port=adapter.name if adapter else "",
        rail=adapter.rail if adapter else None,
        port_gigabits=adapter.gigabits if adapter else 0.0,
    )


def _gpu(line: str, sysfs: Path) -> _Gpu:
    index, uuid, bus, name, mebibytes = (part.strip() for part in line.split(","))
    # The driver writes eight digits of the domain and capitals, sysfs four and none.
    path = (sysfs / "bus" / "pci" / "devices" / bus.lower()[-12:]).resolve()
    return _Gpu(index, uuid, path, name, int(float(mebibytes)) << 20)


def _adapters(sysfs: Path) -> list[_Adapter]:
    """All RDMA adapters, in the order of their PCI addresses."""
    folder = sysfs / "class" / "infiniband"
    found = list(folder.iterdir()) if folder.is_dir() else []
    paths = sorted((each / "device").resolve() for each in found)
    names = {(each / "device").resolve(): each for each in found}
    return [
        _Adapter(names[path].name, rail, path, _gigabits(names[path]))
        for rail, path in enumerate(paths)
    ]


def _adapter_of(mine: _Gpu, gpus: Sequence[_Gpu], adapters: Sequence[_Adapter]) -> _Adapter | None:
    nearest = _nearest(mine, adapters)
    if not nearest:
        return None
    rivals = [gpu for gpu in gpus if _nearest(gpu, adapters) == nearest]
    return nearest[rivals.index(mine) % len(nearest)]


def _nearest(gpu: _Gpu, adapters: Sequence[_Adapter]) -> list[_Adapter]:
    def shared(adapter: _Adapter) -> int:
        return len(Path(os.path.commonpath([gpu.path, adapter.path])).parts)

    most = max(map(shared, adapters), default=0)
    return [adapter for adapter in adapters if shared(adapter) == most]


def _gigabits(adapter: Path) -> float:
    """``400 Gb/sec (4X NDR)`` of the first port."""
    text = _text(adapter / "ports" / "1" / "rate").partition(" ")[0]
    try:
        return float(text)
    except ValueError:
        return 0.0


def _cpus(path: Path) -> frozenset[int]:
    """``0-3,64-67`` as numbers."""
    found: set[int] = set()
    for part in filter(None, _text(path).split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
