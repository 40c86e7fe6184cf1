"""Errors by whose move is next.

    ReallocError
    ├── InvalidInput        the caller fixes the input; carries every problem at once
    ├── Unauthenticated     the caller says who it is, by a certificate or a token that is known
    ├── PermissionDenied    the caller asks someone who may
    ├── NotFound            the caller names something that exists
    ├── Conflict            the caller waits for a state to change
    ├── ResourceExhausted   the caller asks for less, or waits
    ├── Unavailable         the caller retries: a peer or a deadline failed
    └── JobFailed           the caller reads why: the work itself ended in an error

The class name is the reason on the wire (google.rpc.ErrorInfo) and comes back on the
client as the same class.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: where it is, and what to change."""

    path: str
    """Path of the field, such as ``data.path`` or ``plan.calls[2].mesh``."""
    reason: str
    """What is wrong and what to do, one sentence."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class ReallocError(Exception):
    """Base of every error that a user of Realloc can meet."""


class InvalidInput(ReallocError):
    """The input is wrong; every problem is listed with the path of its field."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))

    @staticmethod
    def at(path: str, reason: str) -> "InvalidInput":
        """One problem at one path."""
        return InvalidInput(Problem(path, reason))


class Unauthenticated(ReallocError):
    """The caller's certificate or token is missing, unknown or expired."""


class PermissionDenied(ReallocError):
    """The caller is known and may not do this."""


class NotFound(ReallocError):
    """No such job, model, shard or layout."""


class Conflict(ReallocError):
    """The request contradicts the present state; wait or change the request."""


class ResourceExhausted(ReallocError):
    """A queue or a device is full."""


class Unavailable(ReallocError):
    """A peer did not answer in time; the same request may succeed later."""


class JobFailed(ReallocError):
    """A job, or one of its function calls, ended in an error of its own."""


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one `InvalidInput` with all problems; do nothing where there are none."""
    found = tuple(problems)
    if found:
        raise InvalidInput(*found)
