"""Endpoints that lend each other memory: what shared memory and CUDA IPC have in common.

A sender puts a message into a segment of its own, which the receiver has opened, and offers
it; the receiver reads it there and gives it back. So a message is copied once by each side
(into the segment, out of it), both at the same time for different chunks, and nothing else
touches it.
"""

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Direction, Memory, Operation, Region
from realloc.transfer.links import Link, LinkClosed, Offer, OfferedPart

MAX_OPERATIONS = 256


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
        """What opens the whole allocation of a tensor elsewhere: a description, and a file that
        goes with it."""
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
    message: tuple[Region, ...] = ()
    """Receives: the message in the peer's segments, after the wait."""
    bounced: int | None = None
    """Sends: the segment that the message was copied into."""

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
        segment, offset, bounced = self._place(buffer)
        self._return_finished()
        if (fence := self._segments.fence()) is not None:
            fence.wait()  # the peer reads as soon as it knows
        part = self._part(
            segment, self._own[segment], peer, offset, rows=1, row_bytes=buffer.nbytes, stride=0
        )
        return self._offer((part,), peer, round, bounced)

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> Loan:
        self._return_finished()
        parts = []
        for view in views:
            segment = self._adopt(view)
            offset = view.data_ptr() - view.untyped_storage().data_ptr()
            rows, cols = view.shape
            stride = view.stride(0) * view.itemsize
            parts.append(
                self._part(segment, view, peer, offset, rows, cols * view.itemsize, stride)
            )
        return self._offer(tuple(parts), peer, round, None)

    def _part(
        self,
        segment: int,
        memory: torch.Tensor,
        peer: int,
        offset: int,
        rows: int,
        row_bytes: int,
        stride: int,
    ) -> OfferedPart:
        """A rectangle of a segment, with what opens it if the peer has not done so yet."""
        description, descriptor = b"", None
        if (peer, segment) not in self._shown:
            description, descriptor = self._segments.export(memory)
            self._shown.add((peer, segment))
        return OfferedPart(
            segment=segment,
            offset=offset,
            rows=rows,
            row_bytes=row_bytes,
            stride_bytes=stride,
            description=description,
            descriptor=descriptor,
        )

    def _offer(self, offer: Offer, peer: int, round: int, bounced: int | None) -> Loan:
        size_bytes = sum(part.size_bytes for part in offer)
        operation = self._operation(Direction.SEND, size_bytes, peer, round)
        try:
            self._link(operation).offer(offer)
        except LinkClosed as error:
            raise operation.failed(error) from error
        number = self._sent[peer] = self._sent.get(peer, -1) + 1
        return Loan(operation=operation, owner=self, number=number, buffer=None, bounced=bounced)

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
        if loan.bounced is not None:
            self._spare.append(loan.bounced)

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
        size_bytes = sum(part.size_bytes for part in offer)
        loan.message = tuple(self._region(operation.peer, part) for part in offer)
        if size_bytes != operation.size_bytes:
            raise operation.failed(f"the peer sent {size_bytes} bytes")
        if loan.buffer is not None:
            loan.buffer.view(-1).view(torch.uint8).copy_(loan.message[0].contiguous())
            self.give_back(loan)
            self.settle()

    def give_back(self, loan: Loan) -> None:
        """Tell the sender that its message has been read, once the device has read it."""
        loan.message = ()
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

    def _place(self, buffer: torch.Tensor) -> tuple[int, int, int | None]:
        """Segment and offset of a buffer; one that lies elsewhere is copied into a segment,
        whose number comes third."""
        for index, segment in self._own.items():
            offset = buffer.data_ptr() - segment.data_ptr()
            if offset >= 0 and offset + buffer.nbytes <= segment.nbytes:
                return index, offset, None
        index = self._bounce_segment(buffer.nbytes)
        self._own[index][: buffer.nbytes].copy_(buffer.view(-1).view(torch.uint8))
        return index, 0, index

    def _adopt(self, view: torch.Tensor) -> int:
        """Number of the segment that a caller's allocation is."""
        storage = view.untyped_storage()
        index, alive = self._adopted.get(storage.data_ptr(), (0, None))
        if alive is None or alive.expired():  # type: ignore[no-untyped-call]  # torch declares none
            index, alive = self._new_number(), StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # the same
            self._adopted[storage.data_ptr()] = index, alive
        return index

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

    def _region(self, peer: int, part: OfferedPart) -> Region:
        if part.description:
            segment = self._segments.open(part.description, part.descriptor)
            self._opened[peer, part.segment] = segment
            if part.descriptor is not None:
                os.close(part.descriptor)
        return Region(
            memory=self._opened[peer, part.segment],
            start=part.offset,
            rows=part.rows,
            row_bytes=part.row_bytes,
            stride_bytes=part.stride_bytes,
        )

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
