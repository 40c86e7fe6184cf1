"""Endpoints in one process: threads that copy between each other's buffers."""

import threading
from collections import deque
from dataclasses import dataclass

import torch

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Direction, Operation
from realloc.transfer.messages import MessageCommunicator


@dataclass(slots=True, kw_only=True, eq=False)
class LocalPending:
    """A send or a receive within the process."""

    operation: Operation
    buffer: torch.Tensor
    finished: threading.Event
    error: Unavailable | None = None

    def wait(self, timeout_seconds: float) -> None:
        if not self.finished.wait(timeout_seconds):
            raise self.operation.failed(f"timed out after {timeout_seconds:g} s")
        if self.error is not None:
            raise self.error

    def finish(self, error: str = "") -> None:
        """End the operation, well or with the reason of its failure."""
        if error:
            self.error = self.operation.failed(error)
        self.finished.set()


class LocalWorld:
    """The meeting point of the endpoints; whoever comes second to a pair copies."""

    def __init__(self, num_endpoints: int) -> None:
        self.num_endpoints = num_endpoints
        self._lock = threading.Lock()
        self._unmatched: dict[tuple[int, int], deque[LocalPending]] = {}
        self._closed: set[int] = set()

    def communicator(self, endpoint: int) -> "LocalCommunicator":
        """The end of one thread."""
        return LocalCommunicator(self, endpoint)

    def post(self, pending: LocalPending) -> None:
        """Match an operation with its other half, or leave it for the peer to find."""
        operation = pending.operation
        sending = operation.direction is Direction.SEND
        pair = (operation.endpoint, operation.peer)
        with self._lock:
            queue = self._unmatched.setdefault(pair if sending else pair[::-1], deque())
            matches = bool(queue) and queue[0].operation.direction is not operation.direction
            other = queue.popleft() if matches else None
            if other is None and self._closed & set(pair):
                raise operation.failed("connection closed")
            if other is None:
                queue.append(pending)
        if other is not None:
            copy_matched(*((pending, other) if sending else (other, pending)))

    def leave(self, endpoint: int) -> None:
        """An endpoint goes; whoever waits for it learns at once."""
        with self._lock:
            self._closed.add(endpoint)
            orphans = [
                pending
                for pair, queue in self._unmatched.items()
                if endpoint in pair
                for pending in queue
            ]
        for pending in orphans:
            pending.finish("connection closed")


def copy_matched(sent: LocalPending, received: LocalPending) -> None:
    """Move the bytes of a matched pair and end both operations."""
    if sent.buffer.nbytes == received.buffer.nbytes:
        received.buffer.view(-1).view(torch.uint8).copy_(sent.buffer.view(-1).view(torch.uint8))
        error = ""
    else:
        error = f"{sent.buffer.nbytes} bytes sent, {received.buffer.nbytes} expected"
    sent.finish(error)
    received.finish(error)


class LocalCommunicator(MessageCommunicator):
    """See `Communicator`."""

    def __init__(self, world: LocalWorld, endpoint: int) -> None:
        super().__init__(
            endpoint=endpoint, num_endpoints=world.num_endpoints, device=torch.device("cpu")
        )
        self._world = world

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> LocalPending:
        return self._post(Direction.SEND, buffer, peer, round)

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> LocalPending:
        return self._post(Direction.RECEIVE, buffer, peer, round)

    def _post(
        self, direction: Direction, buffer: torch.Tensor, peer: int, round: int
    ) -> LocalPending:
        operation = self._operation(direction, buffer.nbytes, peer, round)
        pending = LocalPending(operation=operation, buffer=buffer, finished=threading.Event())
        self._world.post(pending)
        return pending

    def close(self) -> None:
        self._world.leave(self._endpoint)
