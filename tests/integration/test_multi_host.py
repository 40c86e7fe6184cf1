"""Three hosts: etcd with three members, mutual TLS, shards on all of them, brought up as
docs/deploy.md says. The hosts are network namespaces of this machine."""

import asyncio
import ipaddress
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from realloc.addresses import host_of
from realloc.client.client import Client
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import Unauthenticated
from realloc.core.job import Job, JobState
from realloc.rpc.channel import Channel, connect
from realloc.security.roles import PROCESSES, Role
from realloc.security.tls import (
    ETCD_NAME,
    PEER_NAME,
    ChannelSecurity,
    client_security,
    peer_security,
)
from tests.support.etcd_leader import leading_member
from tests.support.every_rpc import METHODS, outcome
from tests.support.hand_made_cluster import COUNT, HandMadeCluster
from tests.support.network_namespaces import NetworkNamespaces, why_not
from tests.support.running_cluster import experiment, plain_experiment, write_task

CUT_SECONDS = 240.0
"""Longest until a cut is noticed, named and mended: a lease of 10 s and deadlines of 10 s, on a
machine that may have other things to do."""
WHY_NOT = why_not()

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


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
    them; the member of etcd that leads is killed after the first iteration and nobody notices."""
    pins = {
        "actor_train": "d1t2p1@0-1",
        "critic_train": "d1t2p1@0-1",
        "ref_inf": "d1t1p1@2",
        "actor_gen": "d1t1p1@2",
    }
    plain = plain_experiment(multi_host.folder, "ppo", iterations=4, pins=pins)
    job_id = multi_host.submit(plain)
    killed = False
    with multi_host.client() as client:
        for update in client.watch(job_id):
            if update.report is not None and not killed:
                multi_host.etcd(leading_etcd(multi_host)).kill()
                killed = True
        reports = client.reports(job_id)
    assert update.job.state is JobState.SUCCEEDED, update.job.error
    assert killed
    assert [report.iteration for report in reports] == [1, 2, 3, 4]
    moves = [move for report in reports for move in report.reallocations]
    assert [move.weight_version for move in moves][-3:] == [2, 4, 6]
    assert all(move.digest_ok and move.bytes > 0 for move in moves)


def operators_security(cluster: HandMadeCluster) -> ChannelSecurity | None:
    """How an operator's tool shows itself to etcd."""
    operator = str(cluster.folder / "certs" / "operator")
    return peer_security(operator, server_name=ETCD_NAME)


def operators_store(cluster: HandMadeCluster) -> EtcdStore:
    """Etcd as an operator's tool reaches it, also while a member is cut off."""
    return EtcdStore(
        cluster.etcd_endpoints, timeout_seconds=CUT_SECONDS, security=operators_security(cluster)
    )


def leading_etcd(cluster: HandMadeCluster) -> int:
    """The host whose member of etcd leads."""
    return asyncio.run(leading_member(cluster.etcd_endpoints, operators_security(cluster)))


def all_members(cluster: HandMadeCluster) -> tuple[Member, ...]:
    """Who is registered, once three of each kind are."""

    async def read() -> tuple[Member, ...]:
        counts = {role.value: COUNT for role in PROCESSES}
        async with operators_store(cluster) as store, Members(store) as members:
            return await members.wait_for(counts, timeout_seconds=CUT_SECONDS)

    return asyncio.run(read())


def test_every_process_is_reached_at_its_hosts_address(multi_host: HandMadeCluster) -> None:
    """What etcd says are addresses of the hosts, three of each kind and none of loopback."""
    members = all_members(multi_host)
    assert len(members) == COUNT * len(PROCESSES)
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
        async with asyncio.timeout(240):
            first = {member.kind: member for member in members_at_once}
            counts = [await check(member) for member in first.values()]
        assert min(counts) > 0

    members_at_once = all_members(multi_host)
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


def leading_scheduler(cluster: HandMadeCluster) -> int:
    """The host whose scheduler leads."""

    async def read() -> str:
        async with operators_store(cluster) as store:
            candidates = (await store.list("/realloc/elections/scheduler/")).entries
            return min(candidates, key=lambda entry: entry.create_revision).value.decode()

    return int(asyncio.run(read()).rpartition("-")[2])


def ended(client: Client, job_id: str, seconds: float) -> Job:
    """A job once it has ended; it must within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (job := client.job(job_id)).state.is_at_rest:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)  # polls another process; the deadline decides
    return job


def test_a_host_that_is_cut_off_fails_its_job_by_name(multi_host: HandMadeCluster) -> None:
    """Packets of the host that generates vanish without a word: the job fails with the name of
    what left, the others hang nowhere and run the next job, and the host comes back."""
    before = {member.name for member in all_members(multi_host)}
    leader = leading_scheduler(multi_host)
    lost = 0 if leader == 2 else 2
    pins = {
        "actor_train": "d1t2p1@0-1",
        "critic_train": "d1t2p1@0-1",
        "ref_inf": "d1t2p1@0-1",
        "actor_gen": f"d1t1p1@{lost}",
    }
    with multi_host.client(leader) as client:
        work = experiment(multi_host.folder, "ppo", iterations=1000, pins=pins)
        job = client.submit(work)
        next(update for update in job.watch() if update.report is not None)
        multi_host.hosts.cut(lost)
        try:
            failed = ended(client, job.job_id, CUT_SECONDS)
            assert failed.state is JobState.FAILED
            # Whichever is seen first: the end of its lease, or of a call to it.
            by_name = rf"-{lost} .*(left the cluster|did not answer)"
            assert re.search(by_name, failed.error), failed.error
            elsewhere = {"actor_train": "d1t1p1@1", "actor_gen": "d1t1p1@1"}
            work = experiment(multi_host.folder, "sft", iterations=1, pins=elsewhere)
            again = ended(client, client.submit(work).job_id, CUT_SECONDS)
            assert again.state is JobState.SUCCEEDED, again.error
        finally:
            multi_host.hosts.heal(lost)
    assert {member.name for member in all_members(multi_host)} == before
