"""Three hosts: etcd with three members, mutual TLS, shards on all of them, brought up as
docs/deploy.md says. The hosts are network namespaces of this machine."""

import asyncio
import ipaddress
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.etcd_binary import find_etcd
from realloc.addresses import host_of
from realloc.client.client import Client
from realloc.config import ServiceConfig
from realloc.coordination.etcd_store import store_of
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import Unauthenticated
from realloc.core.job import JobState
from realloc.rpc.channel import Channel, connect
from realloc.security.roles import PROCESSES, Role
from realloc.security.tls import PEER_NAME, client_security, peer_security
from tests.support.every_rpc import METHODS, outcome
from tests.support.network_namespaces import NetworkNamespaces, why_not
from tests.support.running_cluster import experiment, write_task

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 150.0
STOP_SECONDS = 60.0
CUT_SECONDS = 45.0
"""Longest until a cut is noticed, named and mended: a lease of 10 s, and deadlines of 10 s."""
COUNT = 3

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "they work here")


def documented_lines() -> list[str]:
    """What docs/deploy.md says to type, line by line."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    section = text.split("## Several machines by hand", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


class HandMadeCluster:
    """Types the documented lines, each where it says; the shell keeps what is exported."""

    def __init__(self, folder: Path, hosts: NetworkNamespaces) -> None:
        self.folder = folder
        self.hosts = hosts
        self.address = f"{hosts.addresses[0]}:7070"
        self.running: list[subprocess.Popen[bytes]] = []
        python = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            **dict(zip("ABC", hosts.addresses, strict=True)),
            "DEVICES": "1",
            "PATH": f"{folder}:{python}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'common'}:{ROOT}",
            "REALLOC_ETCD": str(find_etcd()),
        }
        command = folder / "realloc"  # what pip would install
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m realloc.client.cli "$@"\n')
        command.chmod(0o755)

    def type_lines(self) -> None:
        """All lines but the submission."""
        for line in documented_lines():
            command, _, where = line.partition("  # on ")
            if line.startswith("export "):
                self._export(line)
            elif where:
                self.start("ABC".index(where), command)
            elif not line.startswith("realloc submit"):
                self._shell(line)

    def start(self, index: int, command: str) -> None:
        """Run a line on a host, in the background."""
        # They end with this process, even when it is killed.
        words = ["setpriv", "--pdeathsig", "TERM", "--"]
        words += self.hosts.inside(index, ["bash", "-c", f"exec {command}"])
        with (self.folder / f"host-{index}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    words, cwd=self.folder, env=self._environment, stdout=log, stderr=log
                )
            )

    def wait_ready(self) -> None:
        """Until every host says that the whole cluster is there."""
        deadline = time.monotonic() + START_SECONDS
        while not all("ready" in self.said(index) for index in range(COUNT)):
            assert all(each.poll() is None for each in self.running), self.said_all()
            assert time.monotonic() < deadline, self.said_all()
            time.sleep(0.1)

    def said(self, index: int) -> str:
        return (self.folder / f"host-{index}.log").read_text()

    def said_all(self) -> str:
        return "\n".join(f"{index}: {self.said(index)[-2000:]}" for index in range(COUNT))

    def submit(self, **changes: Any) -> str:
        """The documented way of a job; the id."""
        path = self.folder / "experiment.yaml"
        path.write_text(yaml.safe_dump({**self._plain(), **changes}))
        line = next(line for line in documented_lines() if line.startswith("realloc submit"))
        said = self._shell(line.removesuffix(" --watch"))
        return said.split("submitted ")[1].split()[0]

    def client(self) -> Client:
        """A client as the exported variables make it."""
        return Client(
            self.address,
            authority=str(self.folder / "certs" / "client" / "ca.crt"),
            token=(self.folder / "ada.token").read_text().strip(),
        )

    def processes(self) -> Mapping[str, psutil.Process]:
        """What runs on all hosts, by ``host/name``; the log's name is the process's."""
        found = {}
        for index, host in enumerate(self.running):
            for child in psutil.Process(host.pid).children(recursive=True):
                log = os.readlink(f"/proc/{child.pid}/fd/1")
                if child.ppid() == host.pid or child.parent().ppid() == host.pid:
                    found.setdefault(f"{index}/{Path(log).stem}", child)
        return found

    def stop(self) -> None:
        family = [
            child for each in self.running for child in psutil.Process(each.pid).children(True)
        ]
        for each in self.running:
            each.send_signal(signal.SIGTERM)
        for each in self.running:
            each.wait(STOP_SECONDS)
        _, left = psutil.wait_procs(family, timeout=5)
        assert not left, f"processes are left: {left}"

    def _plain(self) -> dict[str, Any]:
        folder = self.folder
        return {
            "name": "multi-host",
            "algorithm": "ppo",
            "iterations": 4,
            "seed": 7,
            "actor": {
                "checkpoint": str(folder / "model"),
                "random_weights": True,
                "optimizer": {"learning_rate": 1e-3},
            },
            "data": {"path": str(folder / "train.jsonl"), "batch_size": 16},
            "reward": {"function": f"{folder / 'rewards.py'}:digits"},
            "generation": {"max_new_tokens": 4},
            "ppo": {"mini_batches": 2},
            "pins": {
                "actor_train": "d1t2p1@0-1",
                "critic_train": "d1t2p1@0-1",
                "ref_inf": "d1t1p1@2",
                "actor_gen": "d1t1p1@2",
            },
            "call_timeout_seconds": 60,
        }

    def _export(self, line: str) -> None:
        said = self._shell(f"{line}; env -0")
        self._environment = dict(each.split("=", 1) for each in said.split("\0") if each)

    def _shell(self, line: str) -> str:
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout


@pytest.fixture(scope="module")
def multi_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandMadeCluster]:
    folder = tmp_path_factory.mktemp("multi-host")
    write_task(folder)
    with NetworkNamespaces(COUNT) as hosts:
        made = HandMadeCluster(folder, hosts)
        try:
            made.type_lines()
            made.wait_ready()
            yield made
        finally:
            made.stop()


def test_a_job_spans_three_hosts_and_an_etcd_member_dies(multi_host: HandMadeCluster) -> None:
    """Tensor-parallel training on two hosts, generation on the third, weights moved between
    them; a member of etcd is killed after the first iteration and nobody notices."""
    job_id = multi_host.submit()
    killed = False
    with multi_host.client() as client:
        for update in client.watch(job_id):
            if update.report is not None and not killed:
                multi_host.processes()["1/etcd"].kill()
                killed = True
        reports = client.reports(job_id)
    assert update.job.state is JobState.SUCCEEDED, update.job.error
    assert killed
    assert [report.iteration for report in reports] == [1, 2, 3, 4]
    moves = [move for report in reports for move in report.reallocations]
    assert len(moves) == 3
    assert all(move.digest_ok and move.bytes > 0 for move in moves)


def members_of(cluster: HandMadeCluster) -> tuple[Member, ...]:
    """Who is registered, as an operator sees it."""

    async def read() -> tuple[Member, ...]:
        config = ServiceConfig(
            tls_dir=str(cluster.folder / "certs" / "operator"),
            etcd_endpoints=tuple(f"{host}:2379" for host in cluster.hosts.addresses),
        )
        async with store_of(config) as store, Members(store) as members:
            return members.current()

    return asyncio.run(read())


def test_every_process_is_reached_at_its_hosts_address(multi_host: HandMadeCluster) -> None:
    """What etcd says are addresses of the hosts, three of each kind and none of loopback."""
    members = members_of(multi_host)
    kinds = sorted(member.kind for member in members)
    assert kinds == sorted(3 * [role.value for role in PROCESSES])
    hosts = {host_of(member.address) for member in members}
    assert hosts == set(multi_host.hosts.addresses)


def test_every_rpc_of_every_process_is_shut_to_strangers(multi_host: HandMadeCluster) -> None:
    """Whatever a real process serves, as its own reflection lists it, wants to know who calls:
    no certificate, no TLS, no token, a wrong token."""
    authority = multi_host.folder / "certs" / "client" / "ca.crt"
    nobody = client_security(authority, "")
    unnamed = replace(nobody, server_name=PEER_NAME)
    operator = peer_security(str(multi_host.folder / "certs" / "operator"))
    ada = client_security(authority, (multi_host.folder / "ada.token").read_text().strip())
    wrong = client_security(authority, "realloc_wrong")

    async def check(member: Member) -> int:
        is_scheduler = member.kind == Role.SCHEDULER
        known = ada if is_scheduler else operator
        async with connect(member.address, security=known) as channel:
            served = await served_methods(channel)
        for security in (None, *((nobody, wrong) if is_scheduler else (unnamed,))):
            async with connect(member.address, security=security) as channel:
                for method in served:
                    found = await outcome(channel, method)
                    assert isinstance(found, Unauthenticated), (member.name, method.name, found)
        return len(served)

    async def work() -> None:
        async with asyncio.timeout(60):
            first = {member.kind: member for member in members_at_once}
            counts = [await check(member) for member in first.values()]
        assert min(counts) > 0

    members_at_once = members_of(multi_host)
    asyncio.run(work())


async def served_methods(channel: Channel) -> list[MethodDescriptor]:
    """The methods of our services that a server has, by reflection."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    names = [
        each.name
        async for answer in stub.ServerReflectionInfo(iter([request]))
        for each in answer.list_services_response.service
    ]
    return [method for method in METHODS if method.containing_service.full_name in names]


def test_nothing_listens_on_every_address(multi_host: HandMadeCluster) -> None:
    """Each TCP socket of a host is bound to its own address or to loopback."""
    for index, address in enumerate(multi_host.hosts.addresses):
        table = subprocess.run(
            multi_host.hosts.inside(index, ["cat", "/proc/net/tcp", "/proc/net/tcp6"]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert listening(table) <= {address, "127.0.0.1"}, table


def listening(table: str) -> set[str]:
    """Addresses of the listening sockets in the format of /proc/net/tcp and tcp6."""
    found = set()
    for line in table.splitlines():
        words = line.split()
        if len(words) > 3 and words[3] == "0A":
            raw = bytes.fromhex(words[1].partition(":")[0])
            swapped = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
            parsed = ipaddress.ip_address(swapped)
            found.add(str(getattr(parsed, "ipv4_mapped", None) or parsed))
    return found


def test_a_host_that_is_cut_off_fails_its_job_by_name(multi_host: HandMadeCluster) -> None:
    """Packets of the third host vanish without a word while it generates: the job fails with the
    names of what left, the others hang nowhere and run the next job, and the host comes back."""
    job_id = multi_host.submit(iterations=1000)
    with multi_host.client() as client:
        cut_time = 0.0
        for update in client.watch(job_id):
            if update.report is not None and not cut_time:
                multi_host.hosts.cut(2)
                cut_time = time.monotonic()
        try:
            assert update.job.state is JobState.FAILED
            assert re.search(r"(trainer|generation)-2 .*left the cluster", update.job.error)
            assert time.monotonic() - cut_time < CUT_SECONDS
            pins = {"actor_train": "d1t2p1@0-1"}
            again = client.submit(experiment(multi_host.folder, "sft", iterations=1, pins=pins))
            assert again.wait().state is JobState.SUCCEEDED
        finally:
            multi_host.hosts.heal(2)
    deadline = time.monotonic() + CUT_SECONDS
    while len(members_of(multi_host)) < 3 * len(PROCESSES):
        assert time.monotonic() < deadline, members_of(multi_host)
        time.sleep(0.5)  # polls another process; the deadline decides
