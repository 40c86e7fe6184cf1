"""What the doctor makes of etcd's answers."""

import pytest

from realloc.client.doctor.etcd import QUOTA_BYTES, EtcdMemberStatus, judge_etcd
from realloc.client.doctor.findings import Status


def member(index: int, leader: int = 1, **changes: object) -> EtcdMemberStatus:
    facts = {"version": "3.5.16", "leader": leader, "size_bytes": 1 << 20, **changes}
    return EtcdMemberStatus(name=f"etcd-{index}", endpoint=f"10.0.0.{index}:2379", **facts)  # type: ignore[arg-type]


HEALTHY = [member(index) for index in range(3)]


def test_three_members_that_agree_are_fine() -> None:
    """Nothing is found; the summary has the figures."""
    result = judge_etcd(HEALTHY, [])
    assert result.status is Status.OK
    assert result.summary == "3 of 3 members answer, version 3.5.16, 1.0 MiB"


@pytest.mark.parametrize(
    ("statuses", "alarms", "status", "problem", "advice"),
    [
        ([*HEALTHY[:2], member(2, error="UNAVAILABLE")], [], Status.WARNING,
         "2 of 3 do, 2 are needed", "before another one fails"),
        ([member(0, error="UNAVAILABLE")], [], Status.FAILED,
         "0 of 1 do, 1 are needed", "nothing can be written"),
        ([member(0, leader=0)], [], Status.FAILED, "has no leader", "peer ports"),
        ([*HEALTHY[:2], member(2, leader=7)], [], Status.FAILED,
         "different leaders", "peer ports"),
        ([*HEALTHY[:2], member(2, version="3.4.23")], [], Status.WARNING,
         "3.4.23 and 3.5.16", "one version"),
        (HEALTHY, ["NOSPACE of member 1"], Status.FAILED, "writes are refused", "defrag"),
        ([member(0, size_bytes=QUOTA_BYTES)], [], Status.WARNING, "2.0 GiB of 2 GiB", "compact"),
    ],
)  # fmt: skip
def test_a_broken_etcd_is_described(
    statuses: list[EtcdMemberStatus], alarms: list[str], status: Status, problem: str, advice: str
) -> None:
    """One finding with its number of members, and what to do."""
    (finding,) = judge_etcd(statuses, alarms).findings
    assert finding.status is status
    assert problem in finding.problem
    assert advice in finding.advice
