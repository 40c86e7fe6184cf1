"""A node's supervisor with real trainers: they register, die, come back, and end with it."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from deploy.local.ports import reserved
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.rpc.probe import health_of

READY_SECONDS = 300.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """Endpoint of an etcd."""
    with EtcdServer(find_etcd(), tmp_path) as server:
        yield server.endpoint


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[int]:
    """The first of so many consecutive ports, below those that the kernel gives out."""
    with contextlib.ExitStack() as stack:
        while True:
            first = random.randrange(20_000, 30_000)
            try:
                for port in range(first, first + count):
                    stack.enter_context(reserved(port=port))
                break
            except OSError:
                stack.close()
        yield first


@contextlib.contextmanager
def running_node(
    trainer_config: Path, first_port: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Node 1 of nodes with two devices, which uses five ports, the last one for its health."""
    options = {
        "node": 1,
        "devices-per-node": 2,
        "trainer-config": trainer_config,
        "trainer-port": first_port,
        "shard-health-port": first_port + 2,
        "health-port": first_port + 4,
        "log-dir": folder,
    }
    command = [sys.executable, "-m", "deploy.node", *(f"--{k}={v}" for k, v in options.items())]
    node = subprocess.Popen(command, cwd=ROOT)
    try:
        yield node
    finally:
        node.kill()
        node.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def trainers(endpoint: str) -> dict[str, Member]:
    """The registered trainers by name."""

    async def look() -> dict[str, Member]:
        async with EtcdStore((endpoint,)) as store, Members(store, "trainer") as members:
            return {member.name: member for member in members.current()}

    return asyncio.run(look())


def test_trainers_of_a_node_register_come_back_and_end(etcd: str, tmp_path: Path) -> None:
    """Node 1 of nodes with two devices registers trainers 2 and 3 in that node; a killed one makes
    the node unhealthy until its successor serves; SIGTERM leaves no process."""
    file = tmp_path / "trainer.yaml"
    file.write_text(f"etcd_endpoints: ['{etcd}']\n")
    with reserved_ports(5) as first, running_node(file, first, tmp_path) as node:
        health = first + 4
        wait_until(lambda: health_of(f"127.0.0.1:{health}") == "SERVING")
        before = trainers(etcd)
        assert {name: (each.device, each.node) for name, each in before.items()} == {
            "trainer-2": (2, 1),
            "trainer-3": (3, 1),
        }
        family = psutil.Process(node.pid).children(recursive=True)
        victim = next(each for each in family if "--name=trainer-3" in each.cmdline())
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: health_of(f"127.0.0.1:{health}") == "NOT_SERVING")
        wait_until(lambda: health_of(f"127.0.0.1:{health}") == "SERVING")
        after = trainers(etcd)
        assert after["trainer-2"] == before["trainer-2"]
        assert after["trainer-3"].incarnation != before["trainer-3"].incarnation
        family = psutil.Process(node.pid).children(recursive=True)
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=READY_SECONDS) == 0
        assert not [each for each in family if each.is_running()]
        assert trainers(etcd) == {}
