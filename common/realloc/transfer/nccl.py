"""Endpoints on different GPUs: an NCCL process group of its own, beside any default world.

Rules that NCCL sets and this file keeps:

- Two processes of one device must not be in one communicator: refused when connecting. A
  second process on a device is reached by `cuda_ipc`.
- Operations that are not grouped run one after the other, each waiting for its peer: so they
  are started in groups, of at most `BATCH_SIZE`. Thousands in one group hang NCCL 2.30.
- A kernel that waits for a dead peer never ends: waits poll with a deadline of their own, and
  after a failure the communicator is aborted.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store, Work

from realloc.core.errors import InvalidInput, Unavailable
from realloc.transfer.communicator import Direction, Operation
from realloc.transfer.gloo import first_line
from realloc.transfer.messages import MessageCommunicator

MAX_OPERATIONS = 128
BATCH_SIZE = 16
_POLL_SECONDS = 20e-6
_METHOD = {Direction.SEND: "send", Direction.RECEIVE: "recv"}


@dataclass(slots=True, kw_only=True, eq=False)
class NcclPending:
    """An operation of a group; `work` is the group's, once it has begun."""

    operation: Operation
    buffer: torch.Tensor
    work: Work | None = None

    def wait(self, timeout_seconds: float) -> None:
        if self.work is None:
            raise self.operation.failed("its group has not begun")
        deadline = time.monotonic() + timeout_seconds
        try:
            while not self.work.is_completed():
                if time.monotonic() > deadline:
                    raise self.operation.failed(f"timed out after {timeout_seconds:g} s")
                time.sleep(_POLL_SECONDS)
            self.work.wait()  # the current stream continues after it; raises what went wrong
        except RuntimeError as error:
            raise self.operation.failed(first_line(error)) from error


class NcclCommunicator(MessageCommunicator):
    """See `Communicator`. Buffers are on this process's device."""

    def __init__(
        self,
        *,
        store: Store,
        group_id: str,
        endpoint: int,
        num_endpoints: int,
        members: tuple[int, ...],
        device: torch.device,
        timeout_seconds: float,
    ) -> None:
        """Connect to the other members, which do the same at the same time.

        Args:
            members: endpoints in the group, this one among them; one per device.

        Raises:
            InvalidInput: two endpoints own the same device.
            Unavailable: not all endpoints came within the time.
        """
        from torch.distributed.distributed_c10d import ProcessGroupNCCL  # absent without CUDA

        super().__init__(endpoint=endpoint, num_endpoints=num_endpoints, device=device)
        self._rank = {member: rank for rank, member in enumerate(members)}
        self._group: Any = None
        self._grouped: list[NcclPending] | None = None
        prefixed = PrefixStore(f"nccl/{group_id}", store)
        identity = str(torch.cuda.get_device_properties(device).uuid)
        try:
            _refuse_shared_devices(prefixed, identity, endpoint, members, timeout_seconds)
            options = ProcessGroupNCCL.Options()
            options._timeout = timedelta(seconds=timeout_seconds)
            self._group = ProcessGroupNCCL(prefixed, self._rank[endpoint], len(members), options)
            # Forms the communicator of all endpoints now, under this deadline, rather than
            # one per pair at its first operation.
            self._group.eager_connect_single_device(device)
        except RuntimeError as error:
            raise Unavailable(
                f"endpoint {endpoint}: not all {len(members)} members of transfer group "
                f"{group_id!r} connected within {timeout_seconds:g} s: {first_line(error)}"
            ) from error

    @property
    def max_operations(self) -> int:
        return MAX_OPERATIONS

    @property
    def batch_size(self) -> int:
        return BATCH_SIZE

    def group(self) -> AbstractContextManager[None]:
        return self._coalesced()

    @contextmanager
    def _coalesced(self) -> Iterator[None]:
        if self._group is None:
            yield
            return
        self._grouped = []
        self._group._start_coalescing()
        try:
            yield
        finally:
            work = self._group._end_coalescing()
            for pending in self._grouped:
                pending.work = work
            self._grouped = None

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> NcclPending:
        return self._start(Direction.SEND, buffer, peer, round)

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> NcclPending:
        return self._start(Direction.RECEIVE, buffer, peer, round)

    def close(self) -> None:
        if self._group is not None:
            self._group.abort()
            self._group = None

    def _start(
        self, direction: Direction, buffer: torch.Tensor, peer: int, round: int
    ) -> NcclPending:
        operation = self._operation(direction, buffer.nbytes, peer, round)
        if self._group is None:
            raise operation.failed("the communicator is closed")
        try:
            work = getattr(self._group, _METHOD[direction])([buffer], self._rank[peer], 0)
        except RuntimeError as error:
            raise operation.failed(first_line(error)) from error
        pending = NcclPending(operation=operation, buffer=buffer, work=work)
        if self._grouped is not None:
            self._grouped.append(pending)
        return pending


def _refuse_shared_devices(
    store: Store, identity: str, endpoint: int, members: tuple[int, ...], timeout_seconds: float
) -> None:
    keys = {member: f"device/{member}" for member in members}
    store.set(keys[endpoint], identity)
    store.wait(list(keys.values()), timedelta(seconds=timeout_seconds))
    owners: dict[str, int] = {}
    for member, key in keys.items():
        owner = owners.setdefault(store.get(key).decode(), member)
        if owner != member:
            raise InvalidInput.at(
                "endpoints",
                f"endpoints {owner} and {member} are processes of one device, which NCCL "
                "refuses in one group; connect them by CUDA IPC",
            )
