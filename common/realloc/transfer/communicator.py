"""What moves bytes between the endpoints of a transfer.

Invariants that every backend keeps, and that `tests/contract/test_communicator.py` checks:

- Operations of a pair match in the order in which they were started, sends of one side with
  receives of the other; a matching pair has the same number of bytes.
- Starting an operation never waits for the other side. Waiting for one does not depend on
  any operation being waited for earlier, on either side.
- A buffer belongs to the communicator from the start of its operation until its `wait`
  returned.
- Every wait ends by its deadline. A failure is an `Unavailable` that names this endpoint,
  the peer, the operation and the round. After one, the communicator is only good for
  `close`: what its peers have received is unknown.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from realloc.core.errors import Unavailable


class Direction(Enum):
    """Which half of a point-to-point operation an endpoint does."""

    SEND = "send to"
    RECEIVE = "receive from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One half of a point-to-point operation, as errors name it."""

    endpoint: int
    """Index of the endpoint that started it."""
    direction: Direction
    peer: int
    round: int
    size_bytes: int

    def __str__(self) -> str:
        return (
            f"endpoint {self.endpoint}: {self.direction.value} endpoint {self.peer} "
            f"in round {self.round} ({self.size_bytes} bytes)"
        )

    def failed(self, reason: object) -> Unavailable:
        """The error of this operation."""
        return Unavailable(f"{self} failed: {reason}")


class Pending(Protocol):
    """An operation that was started."""

    @property
    def operation(self) -> Operation: ...

    def wait(self, timeout_seconds: float) -> None:
        """Block until the buffer may be reused (sent) or read (received).

        Raises:
            Unavailable: the peer is gone, or did not do its half within the time.
        """
        ...


class Communicator(Protocol):
    """Point-to-point transfers among a fixed set of endpoints. One thread uses it."""

    @property
    def endpoint(self) -> int:
        """Index of this process among the endpoints."""
        ...

    @property
    def num_endpoints(self) -> int: ...

    @property
    def max_operations(self) -> int:
        """Most operations that may be in flight; the caller keeps to it."""
        ...

    @property
    def batch_size(self) -> int:
        """How many operations to start in one `group`."""
        ...

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """A uint8 buffer that this communicator moves without a copy of its own."""
        ...

    def group(self) -> AbstractContextManager[None]:
        """Operations started inside begin together when the context ends (NCCL)."""
        ...

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        """Start sending a contiguous buffer to another endpoint."""
        ...

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        """Start receiving into a contiguous buffer from another endpoint."""
        ...

    def close(self) -> None:
        """Free everything; operations in flight are abandoned. Safe to call twice."""
        ...
