"""Where devices sit: NUMA node, processors and rail, from what the driver and sysfs say."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from realloc.shard import place
from realloc.shard.place import DevicePlace, find_place, settle_in

MIB = 1 << 20


class ToyMachine:
    """A tree like /sys, and what nvidia-smi would print."""

    def __init__(self, folder: Path) -> None:
        self.sysfs = folder
        self.table = ""

    def add_gpu(self, index: int, bus: str, bridges: str, numa: int, cpus: str) -> None:
        """A GPU behind bridges, such as ``pci0000:15/0000:15:01.0``."""
        device = self._pci(bus, bridges)
        (device / "numa_node").write_text(f"{numa}\n")
        (device / "local_cpulist").write_text(f"{cpus}\n")
        self.table += f"{index}, GPU-{index}aaa, 0000{bus.upper()}, NVIDIA H100 80GB HBM3, 81559\n"

    def add_adapter(self, name: str, bus: str, bridges: str, rate: str) -> None:
        """An RDMA adapter."""
        device = self._pci(bus, bridges)
        port = self.sysfs / "class" / "infiniband" / name
        (port / "ports" / "1").mkdir(parents=True)
        (port / "ports" / "1" / "rate").write_text(rate)
        (port / "device").symlink_to(device)

    def _pci(self, bus: str, bridges: str) -> Path:
        device = self.sysfs / "devices" / bridges / bus
        device.mkdir(parents=True)
        link = self.sysfs / "bus" / "pci" / "devices" / bus
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(device)
        return device


@pytest.fixture
def machine(tmp_path) -> ToyMachine:
    """Two GPUs, each behind a switch with an adapter of its own, in two NUMA nodes; and an adapter
    for storage behind neither."""
    machine = ToyMachine(tmp_path)
    machine.add_gpu(0, "0000:1b:00.0", "pci0000:15/0000:15:01.0", 0, "0-3,8-11")
    machine.add_gpu(1, "0000:9b:00.0", "pci0000:95/0000:95:01.0", 1, "4-7,12-15")
    machine.add_adapter(
        "mlx5_9", "0000:18:00.0", "pci0000:15/0000:15:01.0", "400 Gb/sec (4X NDR)\n"
    )
    machine.add_adapter("mlx5_0", "0000:98:00.0", "pci0000:95/0000:95:01.0", "400 Gb/sec\n")
    machine.add_adapter("mlx5_4", "0000:29:00.0", "pci0000:20", "100 Gb/sec (4X EDR)\n")
    return machine


def test_a_device_has_the_port_behind_its_own_switch(machine):
    """NUMA node, processors, memory and the nearest adapter; rails count by PCI address, whatever
    the adapters are called."""
    assert find_place(machine.table, "1", machine.sysfs) == DevicePlace(
        hardware="NVIDIA H100 80GB HBM3",
        memory_bytes=81559 * MIB,
        numa_node=1,
        cpus=frozenset({4, 5, 6, 7, 12, 13, 14, 15}),
        port="mlx5_0",
        rail=2,
        port_gigabits=400.0,
    )
    first = find_place(machine.table, "0,1", machine.sysfs)
    assert first is not None
    assert (first.port, first.rail) == ("mlx5_9", 0)


def test_devices_as_near_to_several_ports_take_them_in_turn(tmp_path):
    """Two GPUs and two adapters below one bridge: each GPU gets another one."""
    machine = ToyMachine(tmp_path)
    for index in range(4):
        machine.add_gpu(index, f"0000:{index}b:00.0", "pci0000:00", 0, "0-7")
    for index in range(2):
        machine.add_adapter(f"mlx5_{index}", f"0000:{index}c:00.0", "pci0000:00", "200 Gb/sec\n")
    places = [find_place(machine.table, str(index), machine.sysfs) for index in range(4)]
    assert [each.rail for each in places if each] == [0, 1, 0, 1]


def test_a_device_may_be_named_by_its_uuid(machine):
    """CUDA_VISIBLE_DEVICES may hold UUIDs, or the beginning of one."""
    for name in ("GPU-1aaa", "GPU-1a"):
        found = find_place(machine.table, name, machine.sysfs)
        assert found is not None
        assert found.numa_node == 1


def test_what_is_unknown_is_left_out(tmp_path):
    """Without RDMA and with one NUMA node there is neither; labels say what there is."""
    machine = ToyMachine(tmp_path)
    machine.add_gpu(0, "0000:1b:00.0", "pci0000:15", -1, "0-3")
    found = find_place(machine.table, "0", machine.sysfs)
    assert found is not None
    assert found.labels() == {
        "hardware": "NVIDIA H100 80GB HBM3",
        "memory_bytes": str(81559 * MIB),
    }


@pytest.mark.parametrize("visible", ["", "7", "GPU-9"])
def test_a_device_that_is_not_there_has_no_place(machine, visible):
    """An empty or wrong CUDA_VISIBLE_DEVICES gives nothing rather than another device's place."""
    assert find_place(machine.table, visible, machine.sysfs) is None


def test_without_gpus_nothing_is_found_and_nothing_bound(monkeypatch):
    """On a machine without nvidia-smi a shard runs where it likes."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bound = []
    assert settle_in({}, lambda *given: bound.append(given)) is None
    assert bound == []


def test_a_shard_runs_on_the_processors_next_to_its_device(machine, monkeypatch):
    """Of those that it may use at all."""
    allowed = {4, 5, 30}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    monkeypatch.setattr(place, "query_gpus", lambda: machine.table)
    find = partial(find_place, sysfs=machine.sysfs)
    monkeypatch.setattr(place, "find_place", find)
    bound = []
    settle_in({"CUDA_VISIBLE_DEVICES": "1"}, lambda pid, cpus: bound.append((pid, cpus)))
    assert bound == [(0, frozenset({4, 5}))]
