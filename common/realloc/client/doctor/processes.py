"""Checks of what processes say about themselves: pure functions of a deployment."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from realloc.client.doctor.deployment import Answer, Deployment
from realloc.client.doctor.findings import CheckResult, Finding, Status
from realloc.coordination.membership import Member
from realloc.coordination.versions import versions_in
from realloc.core.mesh import Cluster

CLOCK_WARNING_SECONDS = 0.5
CLOCK_FAILED_SECONDS = 5.0
"""Half of a member's lease; also tokens and certificates begin to be refused."""
SHM_BYTES = 1 << 30
DISK_BYTES = 5 << 30
"""Less free than this is worth a word: logs, traces and vLLM's caches grow."""

_CONTROL = ("scheduler", "plan_search", "param_store")
_SHARDS = ("trainer", "generation")


def check_membership(deployment: Deployment) -> CheckResult:
    """Is everybody registered who should be, and does everybody answer?"""
    counts = Counter(member.kind for member in deployment.members)
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nobody"
    findings = [
        *_missing_services(counts, deployment),
        *_missing_devices(deployment),
        *_silent_members(deployment),
        *_misplaced_members(deployment),
    ]
    return CheckResult(name="membership", summary=summary, findings=findings)


def _missing_services(counts: Counter[str], deployment: Deployment) -> Iterator[Finding]:
    for kind in _CONTROL:
        if not counts[kind]:
            yield Finding(
                status=Status.FAILED,
                subject=kind,
                problem="none is registered",
                advice=f"start it, or read its log: python -m services.{kind} --help",
            )
    for kind, has_leader in deployment.leaders.items():
        if counts[kind] and not has_leader:
            yield Finding(
                status=Status.FAILED,
                subject=kind,
                problem="nobody leads",
                advice="its log says why it cannot campaign; etcd may refuse writes",
            )


def _missing_devices(deployment: Deployment) -> Iterator[Finding]:
    cluster = deployment.cluster
    if cluster is None:
        yield Finding(
            status=Status.WARNING,
            subject="scheduler",
            problem="none says how many devices to expect",
            advice="start a scheduler; then run this again",
        )
        return
    for kind in _SHARDS:
        there = {each.device for each in deployment.members if each.kind == kind}
        for node in range(cluster.num_nodes):
            first = node * cluster.devices_per_node
            devices = range(first, first + cluster.devices_per_node)
            gone = [str(device) for device in devices if device not in there]
            if gone:
                yield Finding(
                    status=Status.FAILED,
                    subject=f"{kind}-{', '.join(gone)} on node {node}",
                    problem=f"not registered; the scheduler expects {cluster.num_devices} devices",
                    advice="read its log: its supervisor starts it again unless it fails at once",
                )


def _silent_members(deployment: Deployment) -> Iterator[Finding]:
    for member in deployment.members:
        if member.key in deployment.silent:
            yield Finding(
                status=Status.FAILED,
                subject=_place(member),
                problem=f"registered and does not answer: {deployment.silent[member.key]}",
                advice="it may have just died (its lease ends within 10 s) or hang, or a firewall "
                "lets nothing through to its port",
            )
    for key, reason in deployment.unreadable.items():
        yield Finding(
            status=Status.FAILED,
            subject=key,
            problem=f"its registration cannot be read: {reason}",
            advice="it runs another version of Realloc; install the same everywhere",
        )


def _misplaced_members(deployment: Deployment) -> Iterator[Finding]:
    cluster = deployment.cluster
    owners: dict[tuple[str, int], list[Member]] = defaultdict(list)
    for member in deployment.members:
        if member.device is not None:
            owners[member.kind, member.device].append(member)
            if cluster is not None and not _fits(member, cluster):
                yield Finding(
                    status=Status.FAILED,
                    subject=_place(member),
                    problem=f"says device {member.device} of node {member.node}, which a cluster "
                    f"of {cluster.num_nodes} × {cluster.devices_per_node} devices has not got",
                    advice="give the scheduler and the shards the same sizes",
                )
    for (kind, device), members in owners.items():
        if len(members) > 1:
            yield Finding(
                status=Status.FAILED,
                subject=", ".join(map(_place, members)),
                problem=f"each is the {kind} of device {device}",
                advice="end all but one, or number their devices anew",
            )


def _fits(member: Member, cluster: Cluster) -> bool:
    assert member.device is not None
    inside = member.device < cluster.num_devices
    return inside and member.node in (None, cluster.node_of(member.device))


def check_versions(deployment: Deployment) -> CheckResult:
    """Do all processes run the same version of every library they share?"""
    running: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for member in deployment.members:
        for library, version in versions_in(member.labels).items():
            running[library][version].append(member)
    findings, usuals = [], {}
    for library, by_version in sorted(running.items()):
        usual = usuals[library] = _commonest(by_version)
        findings += [
            _skew(library, version, usual, members, len(by_version[usual]))
            for version, members in by_version.items()
            if version != usual
        ]
    summary = ", ".join(f"{library} {version}" for library, version in usuals.items())
    return CheckResult(
        name="versions", summary=summary or "unknown", findings=findings, data={"usual": usuals}
    )


def _commonest(by_version: Mapping[str, Sequence[Member]]) -> str:
    return max(by_version, key=lambda version: len(by_version[version]))


def _skew(
    library: str, version: str, usual: str, members: Sequence[Member], others: int
) -> Finding:
    ours = library == "realloc"
    return Finding(
        status=Status.FAILED if ours else Status.WARNING,
        subject=", ".join(map(_place, members)),
        problem=f"{library} {version}, and {others} others run {usual}",
        advice="deploy the same release everywhere" if ours else "install the locked environment",
    )


def check_clocks(deployment: Deployment) -> CheckResult:
    """Do the machines' clocks agree? Each is compared with the median of all."""
    offsets = {
        member: deployment.answers[member.key].clock_offset_seconds
        for member in deployment.members
        if member.key in deployment.answers
    }
    if not offsets:
        return CheckResult(name="clocks", summary="nobody answers")
    middle = median(offsets.values())
    findings = []
    for member, offset in offsets.items():
        ahead = offset - middle
        beyond = abs(ahead) - deployment.answers[member.key].round_trip_seconds / 2
        if beyond > CLOCK_WARNING_SECONDS:
            findings.append(
                Finding(
                    status=Status.FAILED if beyond > CLOCK_FAILED_SECONDS else Status.WARNING,
                    subject=_place(member),
                    problem=f"its clock is {abs(ahead):.1f} s "
                    f"{'ahead of' if ahead > 0 else 'behind'} the others",
                    advice=f"run chrony or systemd-timesyncd on {member.host}",
                )
            )
    spread = max(offsets.values()) - min(offsets.values())
    return CheckResult(
        name="clocks",
        summary=f"{len(offsets)} within {spread * 1e3:.1f} ms",
        findings=findings,
        data={"spread_seconds": spread},
    )


def check_devices(deployment: Deployment) -> CheckResult:
    """Does torch see on each shard what the scheduler plans with?"""
    cluster, findings, counts = deployment.cluster, [], Counter[str]()
    wants_gpu = cluster is not None and cluster.device_kind != "cpu"
    for member in deployment.shards():
        answer = deployment.answers[member.key]
        counts[f"CUDA {answer.cuda_version}" if answer.num_gpus else "CPU"] += 1
        if wants_gpu and not answer.num_gpus:
            built = "was built without CUDA" if not answer.cuda_version else "sees no GPU"
            findings.append(
                Finding(
                    status=Status.FAILED,
                    subject=_place(member),
                    problem=f"its torch {built}, and the scheduler plans with "
                    f"{cluster.device_kind if cluster else ''}",
                    advice="look at nvidia-smi and CUDA_VISIBLE_DEVICES there, and at the "
                    "environment's torch",
                )
            )
        if member.kind == "trainer" and answer.num_gpus > 1:
            findings.append(
                Finding(
                    status=Status.FAILED,
                    subject=_place(member),
                    problem=f"sees {answer.num_gpus} GPUs and a trainer owns one",
                    advice="set CUDA_VISIBLE_DEVICES to its own",
                )
            )
    summary = ", ".join(f"{count} shards on {where}" for where, count in counts.items())
    return CheckResult(name="devices", summary=summary or "no shard answers", findings=findings)


def check_space(deployment: Deployment) -> CheckResult:
    """Is there room left in memory and on disk of every host?"""
    findings: list[Finding] = []
    least: dict[str, int] = {}
    for host, answers in _answers_by_host(deployment).items():
        shm = min(answer.shm_free_bytes for answer in answers)
        disk = min(answer.disk_free_bytes for answer in answers)
        least["shm"] = min(shm, least.get("shm", shm))
        least["disk"] = min(disk, least.get("disk", disk))
        if shm < SHM_BYTES:
            size = "no /dev/shm" if shm < 0 else f"{_gib(shm)} free in /dev/shm"
            findings.append(
                Finding(
                    status=Status.WARNING,
                    subject=host,
                    problem=f"{size}; NCCL, vLLM and transfers on CPUs need {_gib(SHM_BYTES)}",
                    advice="in a container, mount an emptyDir of medium Memory",
                )
            )
        if disk < DISK_BYTES:
            findings.append(
                Finding(
                    status=Status.WARNING,
                    subject=host,
                    problem=f"{_gib(disk)} free where the processes run",
                    advice="remove old logs and traces, or move the run folder",
                )
            )
    summary = f"at least {_gib(least['shm'])} shared memory and {_gib(least['disk'])} disk free"
    return CheckResult(
        name="space", summary=summary if least else "nobody answers", findings=findings
    )


def _answers_by_host(deployment: Deployment) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for member in deployment.members:
        if member.key in deployment.answers:
            found[member.host].append(deployment.answers[member.key])
    return found


def _place(member: Member) -> str:
    return f"{member.name} ({member.host}, {member.address})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
