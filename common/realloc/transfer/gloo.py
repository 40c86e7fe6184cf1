"""Endpoints over TCP: a gloo process group of its own, beside any default world.

The group is constructed directly over a store, so it neither needs nor touches
`torch.distributed`'s default group, which belongs to Megatron in a trainer and to vLLM in a
generation process.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, Store, Work

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Direction, Operation
from realloc.transfer.messages import MessageCommunicator

_METHOD = {Direction.SEND: "send", Direction.RECEIVE: "recv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GlooPending:
    """A gloo work handle and the buffer that must outlive it."""

    operation: Operation
    work: Work
    buffer: torch.Tensor

    def wait(self, timeout_seconds: float) -> None:
        # gloo reads a zero timeout as "for ever".
        timeout = timedelta(seconds=max(timeout_seconds, 0.001))
        try:
            self.work.wait(timeout)
        except RuntimeError as error:
            raise self.operation.failed(first_line(error)) from error


class GlooCommunicator(MessageCommunicator):
    """See `Communicator`. Gloo's own threads move the bytes; waiting does not hold the GIL."""

    def __init__(
        self,
        *,
        store: Store,
        group_id: str,
        endpoint: int,
        num_endpoints: int,
        host: str,
        timeout_seconds: float,
    ) -> None:
        """Connect to all other endpoints, which do the same at the same time.

        Args:
            store: rendezvous that all endpoints of the group reach.
            group_id: keeps this group's keys apart from others in the store.
            host: address of this process that the others can connect to.
            timeout_seconds: deadline of the connection.

        Raises:
            Unavailable: not all endpoints came within the time.
        """
        super().__init__(endpoint=endpoint, num_endpoints=num_endpoints, device=torch.device("cpu"))
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # not in torch's stubs
        options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_seconds)
        prefixed = PrefixStore(f"gloo/{group_id}", store)
        try:
            self._group: ProcessGroupGloo | None = ProcessGroupGloo(
                prefixed, endpoint, num_endpoints, options
            )
        except RuntimeError as error:
            raise Unavailable(
                f"endpoint {endpoint}: not all {num_endpoints} endpoints of transfer group "
                f"{group_id!r} connected within {timeout_seconds:g} s: {first_line(error)}"
            ) from error

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> GlooPending:
        return self._start(Direction.SEND, buffer, peer, round)

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> GlooPending:
        return self._start(Direction.RECEIVE, buffer, peer, round)

    def _start(
        self, direction: Direction, buffer: torch.Tensor, peer: int, round: int
    ) -> GlooPending:
        operation = self._operation(direction, buffer.nbytes, peer, round)
        if self._group is None:
            raise operation.failed("the communicator is closed")
        start = getattr(self._group, _METHOD[direction])  # not in torch's stubs
        try:
            work = start([buffer], peer, 0)
        except RuntimeError as error:
            raise operation.failed(first_line(error)) from error
        return GlooPending(operation=operation, work=work, buffer=buffer)

    def close(self) -> None:
        if self._group is not None:
            self._group.abort()
            self._group = None


def first_line(error: BaseException) -> str:
    """The reason without gloo's source position and advice."""
    lines = str(error).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text.split("] ", 1)[-1].split(". This is typically", 1)[0]
