"""Check of etcd: every member, its leader, alarms and size."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc.aio
from aetcd import rpc

from realloc.client.doctor.findings import CheckResult, Finding, Status
from realloc.coordination.etcd_channel import open_channel
from realloc.security.tls import ChannelSecurity

QUOTA_BYTES = 2 << 30
"""etcd's default; beyond it every write is refused."""
_ALARMS = {1: "NOSPACE", 2: "CORRUPT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdMemberStatus:
    """A member as it answers, or why it does not."""

    name: str
    endpoint: str
    version: str = ""
    leader: int = 0
    """Id of the member that it follows; 0 for none."""
    size_bytes: int = 0
    error: str = ""


async def check_etcd(
    endpoints: Sequence[str],
    security: ChannelSecurity | None,
    *,
    timeout_seconds: float,
) -> CheckResult:
    """Ask each member, those that the given ones name included."""
    members = await _members(endpoints, security, timeout_seconds)
    statuses = await asyncio.gather(
        *(_status(name, url, security, timeout_seconds) for name, url in members)
    )
    alarms = await _alarms(endpoints, security, timeout_seconds)
    return judge_etcd(statuses, alarms)


def judge_etcd(statuses: Sequence[EtcdMemberStatus], alarms: Sequence[str]) -> CheckResult:
    """What the members' answers mean."""
    up = [each for each in statuses if not each.error]
    size = max((each.size_bytes for each in up), default=0)
    versions = ", ".join(sorted({each.version for each in up})) or "?"
    summary = (
        f"{len(up)} of {len(statuses)} members answer, version {versions}, {size / 2**20:.1f} MiB"
    )
    findings = [*_unreachable(statuses), *_disagreements(up), *_full(size, alarms)]
    return CheckResult(
        name="etcd",
        summary=summary,
        findings=findings,
        data={"members": [each.endpoint for each in statuses], "size_bytes": size},
    )


def _unreachable(statuses: Sequence[EtcdMemberStatus]) -> Iterator[Finding]:
    down = [each for each in statuses if each.error]
    left, needed = len(statuses) - len(down), len(statuses) // 2 + 1
    for member in down:
        lost = left < needed
        yield Finding(
            status=Status.FAILED if lost else Status.WARNING,
            subject=f"etcd {member.name} ({member.endpoint})".replace("  ", " "),
            problem=f"does not answer: {member.error}; {left} of {len(statuses)} do, "
            f"{needed} are needed",
            advice="nothing can be written until enough are back: start it, read its log"
            if lost
            else "start it before another one fails",
        )


def _disagreements(up: Sequence[EtcdMemberStatus]) -> Iterator[Finding]:
    leaders = {each.leader for each in up}
    if up and (0 in leaders or len(leaders) > 1):
        yield Finding(
            status=Status.FAILED,
            subject="etcd",
            problem="has no leader" if 0 in leaders else "its members follow different leaders",
            advice="the members do not reach each other: check their peer ports and certificates",
        )
    versions = {each.version for each in up}
    if len(versions) > 1:
        yield Finding(
            status=Status.WARNING,
            subject="etcd",
            problem=f"its members run {' and '.join(sorted(versions))}",
            advice="finish the upgrade: one version everywhere",
        )


def _full(size: int, alarms: Sequence[str]) -> Iterator[Finding]:
    for alarm in alarms:
        yield Finding(
            status=Status.FAILED,
            subject="etcd",
            problem=f"alarm {alarm}: writes are refused",
            advice="compact and defragment (etcdctl compact, defrag), then etcdctl alarm disarm"
            if "NOSPACE" in alarm
            else "restore the member from a snapshot",
        )
    if size > 0.8 * QUOTA_BYTES:
        yield Finding(
            status=Status.WARNING,
            subject="etcd",
            problem=f"{size / 2**30:.1f} GiB of {QUOTA_BYTES / 2**30:.0f} GiB are used",
            advice="compact and defragment it, or raise --quota-backend-bytes",
        )


async def _members(
    endpoints: Sequence[str], security: ChannelSecurity | None, timeout: float
) -> list[tuple[str, str]]:
    """Names and client addresses: as etcd lists them, else as they were given."""
    try:
        async with open_channel(endpoints, security) as channel:
            stub = rpc.ClusterStub(channel)
            listed = await stub.MemberList(
                rpc.MemberListRequest(), timeout=timeout, wait_for_ready=True
            )
    except grpc.aio.AioRpcError:
        return [("", endpoint) for endpoint in endpoints]
    return [
        (member.name, (member.clientURLs[0] if member.clientURLs else "").split("://")[-1])
        for member in listed.members
    ]


async def _status(
    name: str, endpoint: str, security: ChannelSecurity | None, timeout: float
) -> EtcdMemberStatus:
    if not endpoint:
        return EtcdMemberStatus(name=name, endpoint="?", error="it never started")
    try:
        async with open_channel([endpoint], security) as channel:
            status = await rpc.MaintenanceStub(channel).Status(
                rpc.StatusRequest(), timeout=timeout, wait_for_ready=True
            )
    except grpc.aio.AioRpcError as error:
        reason = f"{error.code().name} {error.details()}"
        return EtcdMemberStatus(name=name, endpoint=endpoint, error=reason)
    return EtcdMemberStatus(
        name=name,
        endpoint=endpoint,
        version=status.version,
        leader=status.leader,
        size_bytes=status.dbSize,
    )


async def _alarms(
    endpoints: Sequence[str], security: ChannelSecurity | None, timeout: float
) -> list[str]:
    try:
        async with open_channel(endpoints, security) as channel:
            listed = await rpc.MaintenanceStub(channel).Alarm(
                rpc.AlarmRequest(), timeout=timeout, wait_for_ready=True
            )
    except grpc.aio.AioRpcError:
        return []
    return [
        f"{_ALARMS.get(each.alarm, each.alarm)} of member {each.memberID:x}"
        for each in listed.alarms
    ]
