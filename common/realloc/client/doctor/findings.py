"""What a check of a deployment came to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """How a check ended, from good to bad."""

    OK = "ok"
    SKIPPED = "skipped"
    """Could not be made; the reason says why."""
    WARNING = "warning"
    """Works, and somebody should look at it."""
    FAILED = "failed"
    """Jobs will fail, or do already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    status: Status
    subject: str
    """Who: a process, a host, a file."""
    problem: str
    """What is wrong, with the numbers that disagree."""
    advice: str
    """What to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check, done."""

    name: str
    summary: str
    """What was seen, in a line, whether good or bad."""
    findings: Sequence[Finding] = ()
    seconds: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict)
    """Figures for ``--json``."""

    @property
    def status(self) -> Status:
        """The worst of the findings."""
        return worst(finding.status for finding in self.findings)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of some statuses; OK where there are none."""
    order = list(Status)
    return max(statuses, key=order.index, default=Status.OK)


def skipped(name: str, reason: str, advice: str) -> CheckResult:
    """A check that could not be made."""
    finding = Finding(status=Status.SKIPPED, subject=name, problem=reason, advice=advice)
    return CheckResult(name=name, summary=reason, findings=(finding,))
