"""Endpoints that lend each other memory: what shared memory and CUDA IPC have in common.

A sender puts a message into a segment of its own, which the receiver has opened, and offers
it; the receiver reads it there and gives it back. So a message is copied once by each side
(into the segment, out of it), both at the same time for different chunks, and nothing else
touches it.
"""

import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Direction, Memory, Operation
from realloc.transfer.links import Link, LinkClosed, Offer

MAX_OPERATIONS = 256
LEAST_ADOPTED = 1 << 20
"""Bytes of the smallest allocation that is lent as it is: opening one costs the peer more than
copying less."""


class Fence(Protocol):
    """A point in the work of a device."""

    def passed(self) -> bool:
        """Whether the device has come so far."""
        ...

    def wait(self) -> None:
        """Block until it has."""
        ...


class Segments(Protocol):
    """Memory that another process on the same host (or device) can open."""

    @property
    def memory(self) -> Memory:
        """LENT, or OPEN where `export` takes any memory."""
        ...

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """A new segment, uint8 [size_bytes]."""
        ...

    def export(self, segment: torch.Tensor) -> tuple[bytes, int | None]:
        """What opens the segment elsewhere: a description, and a file that goes with it."""
        ...

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        """A segment of another process."""
        ...

    def fence(self) -> Fence | None:
        """Behind the copies that this process began; None where they are done already."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Loan:
    """A message on its way; a sender's or a receiver's view of it. See `Pending`."""

    operation: Operation
    owner: "LendingCommunicator" = field(repr=False)
    number: int
    """Of the messages of this pair and direction."""
    buffer: torch.Tensor | None
    """Receives: where the message goes; None when it is read in the peer's segment."""
    message: torch.Tensor | None = None
    """Receives: the message in the peer's segment, after the wait."""

    def wait(self, timeout_seconds: float) -> None:
        if self.operation.direction is Direction.SEND:
            self.owner.finish_send(self, timeout_seconds)
        else:
            self.owner.finish_receive(self, timeout_seconds)

    def release(self) -> None:
        """Receives without a buffer: give the message back to its sender."""
        self.owner.give_back(self)


class LendingCommunicator:
    """See `Communicator`. Sends from buffers of `allocate` are not copied."""

    def __init__(
        self,
        *,
        endpoint: int,
        num_endpoints: int,
        links: Mapping[int, Link],
        segments: Segments,
        device: torch.device,
    ) -> None:
        self._endpoint = endpoint
        self._num_endpoints = num_endpoints
        self._links = dict(links)
        self._segments = segments
        self._device = device
        self._num_segments = 0
        self._own: dict[int, torch.Tensor] = {}
        self._adopted: dict[int, tuple[int, StorageWeakRef]] = {}
        self._shown: set[tuple[int, int]] = set()
        self._opened: dict[tuple[int, int], torch.Tensor] = {}
        self._spare: list[int] = []
        self._bounced: dict[tuple[int, int], int] = {}
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._released: deque[tuple[Fence, Loan]] = deque()

    @property
    def endpoint(self) -> int:
        return self._endpoint

    @property
    def num_endpoints(self) -> int:
        return self._num_endpoints

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def max_operations(self) -> int:
        return MAX_OPERATIONS

    @property
    def batch_size(self) -> int:
        return 1

    def memory(self, peer: int) -> Memory:
        return self._segments.memory

    def group(self) -> AbstractContextManager[None]:
        return nullcontext()

    def allocate(self, size_bytes: int) -> torch.Tensor:
        segment = self._segments.allocate(size_bytes)
        self._own[self._new_number()] = segment
        return segment

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> Loan:
        operation = self._operation(Direction.SEND, buffer.nbytes, peer, round)
        link = self._link(operation)
        number = self._sent[peer] = self._sent.get(peer, -1) + 1
        segment, offset = self._place(buffer, peer, number)
        self._return_finished()
        if (fence := self._segments.fence()) is not None:
            fence.wait()  # the peer reads as soon as it knows
        description, descriptor = b"", None
        if (peer, segment) not in self._shown:
            description, descriptor = self._segments.export(self._segment(segment, buffer))
            self._shown.add((peer, segment))
        try:
            link.offer(
                Offer(
                    segment=segment,
                    offset=offset,
                    size_bytes=buffer.nbytes,
                    description=description,
                    descriptor=descriptor,
                )
            )
        except LinkClosed as error:
            raise operation.failed(error) from error
        return Loan(operation=operation, owner=self, number=number, buffer=None)

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> Loan:
        return self._receive(buffer, buffer.nbytes, peer, round)

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> Loan:
        return self._receive(None, size_bytes, peer, round)

    def finish_send(self, loan: Loan, timeout_seconds: float) -> None:
        """Wait until the peer has given the message back."""
        link = self._link(loan.operation)
        self.settle()
        try:
            done = link.wait_returned(loan.number, time.monotonic() + timeout_seconds)
        except LinkClosed as error:
            raise loan.operation.failed(error) from error
        if not done:
            raise loan.operation.failed(f"timed out after {timeout_seconds:g} s")
        segment = self._bounced.pop((loan.operation.peer, loan.number), None)
        if segment is not None:
            self._spare.append(segment)

    def finish_receive(self, loan: Loan, timeout_seconds: float) -> None:
        """Wait for the peer's offer; copy it out where there is a buffer."""
        operation = loan.operation
        link = self._link(operation)
        self._return_finished()
        try:
            offer = link.next_offer(0.0)
            if offer is None:  # the peer may be waiting for what was released here
                self.settle()
                offer = link.next_offer(time.monotonic() + timeout_seconds)
        except LinkClosed as error:
            raise operation.failed(error) from error
        if offer is None:
            raise operation.failed(f"timed out after {timeout_seconds:g} s")
        if offer.size_bytes != operation.size_bytes:
            raise operation.failed(f"the peer sent {offer.size_bytes} bytes")
        segment = self._open(operation.peer, offer)
        loan.message = segment[offset_range(offer)]
        if loan.buffer is not None:
            loan.buffer.view(-1).view(torch.uint8).copy_(loan.message)
            self.give_back(loan)
            self.settle()

    def give_back(self, loan: Loan) -> None:
        """Tell the sender that its message has been read, once the device has read it."""
        loan.message = None
        fence = self._segments.fence()
        if fence is None:
            self._return(loan)
        else:
            self._released.append((fence, loan))

    def settle(self) -> None:
        while self._released:
            self._released[0][0].wait()
            self._return_finished()

    def close(self) -> None:
        with suppress(Unavailable, RuntimeError):  # a peer, or the device, may be gone
            self.settle()
        self._released.clear()
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._opened.clear()
        self._own.clear()
        self._adopted.clear()

    def _receive(self, buffer: torch.Tensor | None, size_bytes: int, peer: int, round: int) -> Loan:
        operation = self._operation(Direction.RECEIVE, size_bytes, peer, round)
        self._link(operation)
        number = self._received[peer] = self._received.get(peer, -1) + 1
        return Loan(operation=operation, owner=self, number=number, buffer=buffer)

    def _return_finished(self) -> None:
        while self._released and self._released[0][0].passed():
            self._return(self._released.popleft()[1])

    def _return(self, loan: Loan) -> None:
        try:
            self._link(loan.operation).give_back(loan.number)
        except LinkClosed as error:
            raise loan.operation.failed(error) from error

    def _place(self, buffer: torch.Tensor, peer: int, number: int) -> tuple[int, int]:
        """Segment and offset of a buffer; one that cannot be lent is copied into a segment."""
        first = buffer.data_ptr()
        for index, segment in self._own.items():
            offset = first - segment.data_ptr()
            if offset >= 0 and offset + buffer.nbytes <= segment.nbytes:
                return index, offset
        adopted = self._adopt(buffer)
        if adopted is not None:
            return adopted, first - buffer.untyped_storage().data_ptr()
        index = self._bounce_segment(buffer.nbytes)
        self._bounced[peer, number] = index
        self._own[index][: buffer.nbytes].copy_(buffer.view(-1).view(torch.uint8))
        return index, 0

    def _adopt(self, buffer: torch.Tensor) -> int | None:
        """Number of the segment that a caller's own memory is."""
        if self.memory(0) is not Memory.OPEN or buffer.untyped_storage().nbytes() < LEAST_ADOPTED:
            return None
        base = buffer.untyped_storage().data_ptr()
        if base in self._adopted:
            index, alive = self._adopted[base]
            if not alive.expired():  # type: ignore[no-untyped-call]  # torch declares none
                return index
        index = self._new_number()
        storage = buffer.untyped_storage()
        self._adopted[base] = index, StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # the same
        return index

    def _segment(self, index: int, buffer: torch.Tensor) -> torch.Tensor:
        """The memory of a segment in which a buffer lies."""
        return self._own[index] if index in self._own else whole_storage(buffer)

    def _new_number(self) -> int:
        self._num_segments += 1
        return self._num_segments - 1

    def _bounce_segment(self, size_bytes: int) -> int:
        for index in self._spare:
            if self._own[index].nbytes >= size_bytes:
                self._spare.remove(index)
                return index
        self.allocate(size_bytes)
        return self._num_segments - 1

    def _open(self, peer: int, offer: Offer) -> torch.Tensor:
        if offer.description:
            self._opened[peer, offer.segment] = self._segments.open(
                offer.description, offer.descriptor
            )
            if offer.descriptor is not None:
                os.close(offer.descriptor)
        return self._opened[peer, offer.segment]

    def _link(self, operation: Operation) -> Link:
        link = self._links.get(operation.peer)
        if link is None:
            raise operation.failed("no connection to the peer")
        return link

    def _operation(self, direction: Direction, size_bytes: int, peer: int, round: int) -> Operation:
        return Operation(
            endpoint=self._endpoint,
            direction=direction,
            peer=peer,
            round=round,
            size_bytes=size_bytes,
        )


def whole_storage(buffer: torch.Tensor) -> torch.Tensor:
    """All memory of the allocation that a tensor lies in, uint8."""
    storage = buffer.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=buffer.device).set_(storage)


def offset_range(offer: Offer) -> slice:
    """The part of its segment that an offer means."""
    return slice(offer.offset, offer.offset + offer.size_bytes)
