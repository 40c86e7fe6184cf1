"""What moves bytes between the endpoints of a transfer.

Invariants that every backend keeps, and that `tests/contract/test_communicator.py` checks:

- Operations of a pair match in the order in which they were started, sends of one side with
  receives of the other; a matching pair has the same number of bytes.
- Starting an operation never waits for the other side.
- Operations are waited for in an order that all endpoints share, as that of starting them.
- A buffer belongs to the communicator from the start of its operation until its `wait`
  returned.
- Every wait ends by its deadline. A failure is an `Unavailable` that names this endpoint,
  the peer, the operation and the round. After one, the communicator is only good for
  `close`: what its peers have received is unknown.
"""

from collections.abc import Sequence
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


class Memory(Enum):
    """How a communicator reaches a peer, and what that means for the caller's buffers."""

    ANY = "moves any contiguous buffer as it is"
    LENT = "the receiver lends memory of `allocate`, and the sender writes there"
    OPEN = "the sender lends any memory of its device, and the receiver reads there"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A strided rectangle of memory, in bytes."""

    memory: torch.Tensor
    """uint8, 1-D."""
    start: int
    rows: int
    row_bytes: int
    stride_bytes: int
    """From one row to the next."""

    def contiguous(self) -> torch.Tensor:
        """The bytes of a region without gaps, uint8 [rows * row_bytes]."""
        assert self.rows == 1 or self.row_bytes == self.stride_bytes, "the region has gaps"
        return self.memory[self.start : self.start + self.rows * self.row_bytes]


class Borrowed(Pending, Protocol):
    """An operation that is done in the peer's memory: its bytes are read or written there."""

    @property
    def message(self) -> tuple[Region, ...]:
        """Where the bytes lie, or go, in order, from the wait to the release."""
        ...

    def release(self) -> None:
        """Give the memory back to the peer, at the latest in the next wait or `settle`."""
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
    def device(self) -> torch.device:
        """Where the buffers lie that it moves."""
        ...

    @property
    def max_operations(self) -> int:
        """Most operations that may be in flight; the caller keeps to it."""
        ...

    @property
    def batch_size(self) -> int:
        """How many operations to start in one `group`."""
        ...

    def memory(self, peer: int) -> Memory:
        """Which buffers reach a peer without a further copy."""
        ...

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """A uint8 buffer that this communicator moves without a copy of its own."""
        ...

    def lends(self, memory: torch.Tensor) -> bool:
        """Whether `lend` takes views of this memory."""
        ...

    def group(self) -> AbstractContextManager[None]:
        """Operations started inside begin together when the context ends (NCCL)."""
        ...

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        """Start sending a contiguous buffer to another endpoint."""
        ...

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> Pending:
        """Start a send that the peer reads in place (OPEN), or a receive that it writes (LENT).

        Args:
            views: [rows, cols] each, rows without gaps; one message in this order. No work on
                the device is still writing there.
        """
        ...

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        """Start receiving into a contiguous buffer from another endpoint."""
        ...

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> Borrowed:
        """Start the other half: a receive that is read in the sender's memory (OPEN), or a
        send that is written into the receiver's (LENT)."""
        ...

    def settle(self) -> None:
        """Give back all that was released: a device may still have been reading it.

        Raises:
            Unavailable: the peer is gone.
        """
        ...

    def close(self) -> None:
        """Free everything; operations in flight are abandoned. Safe to call twice."""
        ...
