"""What the doctor makes of a deployment: each broken thing is named, with what to do."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from realloc.client.doctor.deployment import Answer, Deployment
from realloc.client.doctor.findings import CheckResult, Status
from realloc.client.doctor.processes import (
    check_clocks,
    check_devices,
    check_membership,
    check_space,
    check_versions,
)
from realloc.coordination.membership import Member
from realloc.core.mesh import Cluster

ANSWER = Answer(
    clock_offset_seconds=100.0,  # the doctor's own clock may be wrong
    round_trip_seconds=0.002,
    num_gpus=0,
    cuda_version="",
    job_id="",
    shm_free_bytes=8 << 30,
    disk_free_bytes=100 << 30,
)
CHECKS = (check_membership, check_versions, check_clocks, check_devices, check_space)


def member(kind: str, device: int | None = None, **changes: Any) -> Member:
    name = kind if device is None else f"{kind}-{device}"
    whole = Member(
        kind=kind,
        name=name,
        address=f"10.0.0.{device or 0}:7000",
        incarnation="1",
        host=f"host-{(device or 0) // 2}",
        device=device,
        node=None if device is None else device // 2,
        labels={"version/torch": "2.13.0", "version/realloc": "0.1.0"},
    )
    return replace(whole, **changes)


def healthy() -> Deployment:
    """Two nodes of two devices."""
    members = [member(kind) for kind in ("scheduler", "plan_search", "param_store")]
    members += [member(kind, device) for kind in ("trainer", "generation") for device in range(4)]
    return of(*members)


def of(*members: Member, **changes: Any) -> Deployment:
    deployment = Deployment(
        members=members,
        unreadable={},
        cluster=Cluster(
            num_nodes=2, devices_per_node=2, device_kind="cpu", device_memory_bytes=1 << 30
        ),
        answers={each.key: ANSWER for each in members},
        silent={},
        leaders={"scheduler": True, "param_store": True},
    )
    return replace(deployment, **changes)


def without(name: str) -> Deployment:
    return of(*(each for each in healthy().members if each.name != name))


def changed(name: str, **changes: Any) -> Deployment:
    """One member registered otherwise."""
    return of(
        *(replace(each, **changes) if each.name == name else each for each in healthy().members)
    )


def answering(name: str, **changes: Any) -> Deployment:
    """One member that answers otherwise."""
    deployment = healthy()
    answers = {
        key: replace(answer, **changes) if key.endswith(f"/{name}") else answer
        for key, answer in deployment.answers.items()
    }
    return replace(deployment, answers=answers)


def silent(name: str) -> Deployment:
    deployment = healthy()
    key = next(each.key for each in deployment.members if each.name == name)
    answers: Mapping[str, Answer] = {k: a for k, a in deployment.answers.items() if k != key}
    return replace(deployment, answers=answers, silent={key: "did not answer in time"})


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_wrong_with_a_healthy_deployment(check: Any) -> None:
    """No check finds anything, whatever the doctor's own clock says."""
    assert not check(healthy()).findings


@pytest.mark.parametrize(
    ("check", "deployment", "status", "subject", "problem", "advice"),
    [
        (check_membership, without("scheduler"), Status.FAILED,
         "scheduler", "none is registered", "python -m services.scheduler"),
        (check_membership, without("trainer-3"), Status.FAILED,
         "trainer-3 on node 1", "not registered; the scheduler expects 4", "read its log"),
        (check_membership, silent("generation-2"), Status.FAILED,
         "generation-2 (host-1, 10.0.0.2:7000)", "does not answer", "firewall"),
        (check_membership, changed("trainer-2", node=0), Status.FAILED,
         "trainer-2", "device 2 of node 0", "same sizes"),
        (check_membership, of(*healthy().members, member("trainer", 1, name="other")),
         Status.FAILED, "trainer-1 (host-0, 10.0.0.1:7000), other", "trainer of device 1",
         "all but one"),
        (check_membership, replace(healthy(), unreadable={"/members/x/y": "host: is missing"}),
         Status.FAILED, "/members/x/y", "host: is missing", "same everywhere"),
        (check_membership, replace(healthy(), leaders={"scheduler": False, "param_store": True}),
         Status.FAILED, "scheduler", "nobody leads", "its log"),
        (check_versions, changed("trainer-1", labels={"version/torch": "2.12.0"}), Status.WARNING,
         "trainer-1", "torch 2.12.0, and 10 others run 2.13.0", "locked environment"),
        (check_versions, changed("trainer-1", labels={"version/realloc": "0.0.9"}), Status.FAILED,
         "trainer-1", "realloc 0.0.9", "same release"),
        (check_clocks, answering("trainer-1", clock_offset_seconds=102.0), Status.WARNING,
         "trainer-1", "2.0 s ahead of", "chrony or systemd-timesyncd on host-0"),
        (check_clocks, answering("trainer-3", clock_offset_seconds=60.0), Status.FAILED,
         "trainer-3", "40.0 s behind", "on host-1"),
        (check_space, answering("trainer-3", shm_free_bytes=64 << 20), Status.WARNING,
         "host-1", "0.1 GiB free in /dev/shm", "emptyDir"),
        (check_space, answering("trainer-0", disk_free_bytes=1 << 30), Status.WARNING,
         "host-0", "1.0 GiB free", "logs and traces"),
        (check_devices, answering("trainer-0", num_gpus=8), Status.FAILED,
         "trainer-0", "sees 8 GPUs", "CUDA_VISIBLE_DEVICES"),
    ],
)  # fmt: skip
def test_a_broken_thing_is_named_with_what_to_do(
    check: Any, deployment: Deployment, status: Status, subject: str, problem: str, advice: str
) -> None:
    """Exactly one finding, about the right process."""
    result: CheckResult = check(deployment)
    assert [finding.status for finding in result.findings] == [status], result.findings
    (finding,) = result.findings
    assert subject in finding.subject
    assert problem in finding.problem
    assert advice in finding.advice


def test_a_shard_without_its_gpu_is_found() -> None:
    """On a GPU cluster every shard that sees none is named, and why."""
    deployment = answering("trainer-1", num_gpus=1, cuda_version="13.0")
    assert deployment.cluster is not None
    deployment = replace(deployment, cluster=replace(deployment.cluster, device_kind="H100"))
    findings = check_devices(deployment).findings
    assert len(findings) == 7
    assert all(
        "without CUDA, and the scheduler plans with H100" in each.problem for each in findings
    )


def test_a_slow_answer_is_no_wrong_clock() -> None:
    """An offset within half of the round trip proves nothing."""
    deployment = answering("trainer-1", clock_offset_seconds=101.5, round_trip_seconds=3.0)
    assert not check_clocks(deployment).findings
