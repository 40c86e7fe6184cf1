"""Endpoints that lend each other memory: what shared memory and CUDA IPC have in common.

One side of a message lends memory, which the other has opened: it offers a part, the other
reads or writes there and gives it back. On a GPU, where all memory can be opened, the sender
lends its parameters. On a CPU only segments can be opened, so the receiver lends: its shadow
parameters are segments (`realloc.transfer.shadow`). Either way each byte is copied once.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Direction, Memory, Operation, Region
from realloc.transfer.links import Link, LinkClosed, Offer, OfferedPart, Use
from realloc.transfer.own_end import OwnEnd


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
        """A new segment or a part of one, uint8 [size_bytes]."""
        ...

    def lends(self, memory: torch.Tensor) -> bool:
        """Whether `export` takes it."""
        ...

    def export(self, memory: torch.Tensor) -> tuple[bytes, int | None]:
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
    """Memory of this endpoint that a peer uses; see `Pending`."""

    operation: Operation
    owner: "LendingCommunicator" = field(repr=False)
    number: int
    """Of the offers to this peer."""
    bounced: torch.Tensor | None = None
    """The segment that a message was copied into, if its memory could not be lent."""

    def wait(self, timeout_seconds: float) -> None:
        self.owner.finish_loan(self, timeout_seconds)


@dataclass(slots=True, kw_only=True, eq=False)
class PeerLoan:
    """Memory of a peer that this endpoint uses; see `Borrowed`."""

    operation: Operation
    owner: "LendingCommunicator" = field(repr=False)
    use: Use
    buffer: torch.Tensor | None = None
    """Where the message goes; None when the caller reads or writes it in the peer's memory."""
    number: int = -1
    """Of the peer's offers, after the wait."""
    message: tuple[Region, ...] = ()

    def wait(self, timeout_seconds: float) -> None:
        self.owner.await_offer(self, timeout_seconds)

    def release(self) -> None:
        self.owner.give_back(self)


class LendingCommunicator(OwnEnd):
    """See `Communicator`. Sends from memory that can be lent are not copied."""

    def __init__(
        self,
        *,
        endpoint: int,
        num_endpoints: int,
        links: Mapping[int, Link],
        segments: Segments,
        device: torch.device,
    ) -> None:
        super().__init__(endpoint=endpoint, num_endpoints=num_endpoints, device=device)
        self._links = dict(links)
        self._segments = segments
        self._numbers = itertools.count()
        self._adopted: dict[int, tuple[int, StorageWeakRef]] = {}
        self._shown: set[tuple[int, int]] = set()
        self._opened: dict[tuple[int, int], torch.Tensor] = {}
        self._spare: list[torch.Tensor] = []
        self._offered = dict.fromkeys(links, 0)
        self._released: deque[tuple[Fence, PeerLoan]] = deque()

    def memory(self, peer: int) -> Memory:
        return self._segments.memory

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return self._segments.allocate(size_bytes)

    def lends(self, memory: torch.Tensor) -> bool:
        return self._segments.lends(memory)

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> Loan:
        bounced = None
        if not self.lends(buffer):
            bounced = self._bounce(buffer)
            buffer = bounced[: buffer.nbytes]
        self._return_finished()
        if (fence := self._segments.fence()) is not None:
            fence.wait()  # the peer reads as soon as it knows
        operation = self._operation(Direction.SEND, buffer.nbytes, peer, round)
        loan = self._offer(operation, Use.READ, [buffer.view(1, -1)])
        loan.bounced = bounced
        return loan

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> PeerLoan:
        operation = self._operation(Direction.RECEIVE, buffer.nbytes, peer, round)
        self._link(operation)
        return PeerLoan(operation=operation, owner=self, use=Use.READ, buffer=buffer)

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> Loan:
        self._return_finished()
        size_bytes = sum(view.nbytes for view in views)
        direction, use = (
            (Direction.SEND, Use.READ)
            if self._segments.memory is Memory.OPEN
            else (Direction.RECEIVE, Use.WRITE)
        )
        return self._offer(self._operation(direction, size_bytes, peer, round), use, views)

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> PeerLoan:
        direction, use = (
            (Direction.RECEIVE, Use.READ)
            if self._segments.memory is Memory.OPEN
            else (Direction.SEND, Use.WRITE)
        )
        operation = self._operation(direction, size_bytes, peer, round)
        self._link(operation)
        return PeerLoan(operation=operation, owner=self, use=use)

    def finish_loan(self, loan: Loan, timeout_seconds: float) -> None:
        """Wait until the peer has given the memory back."""
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

    def await_offer(self, loan: PeerLoan, timeout_seconds: float) -> None:
        """Wait for the peer's memory; copy the message out where there is a buffer."""
        operation = loan.operation
        link = self._link(operation)
        self._return_finished()
        try:
            offer = link.next_offer(loan.use, 0.0)
            if offer is None:  # the peer may be waiting for what was released here
                self.settle()
                offer = link.next_offer(loan.use, time.monotonic() + timeout_seconds)
        except LinkClosed as error:
            raise operation.failed(error) from error
        if offer is None:
            raise operation.failed(f"timed out after {timeout_seconds:g} s")
        loan.number = offer.number
        loan.message = tuple(self._region(operation.peer, part) for part in offer.parts)
        if offer.size_bytes != operation.size_bytes:
            raise operation.failed(f"the peer's half has {offer.size_bytes} bytes")
        if loan.buffer is not None:
            loan.buffer.view(-1).view(torch.uint8).copy_(loan.message[0].contiguous())
            self.give_back(loan)
            self.settle()

    def give_back(self, loan: PeerLoan) -> None:
        """Tell the peer that its memory is free, once the device is through with it."""
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
        self._spare.clear()
        self._adopted.clear()

    def _offer(self, operation: Operation, use: Use, views: Sequence[torch.Tensor]) -> Loan:
        link, peer = self._link(operation), operation.peer
        number = self._offered[peer]
        parts = tuple(self._part(view, peer) for view in views)
        try:
            link.offer(Offer(number=number, use=use, parts=parts))
        except LinkClosed as error:
            raise operation.failed(error) from error
        self._offered[peer] = number + 1
        return Loan(operation=operation, owner=self, number=number)

    def _part(self, view: torch.Tensor, peer: int) -> OfferedPart:
        """A view as the peer finds it, with what opens its segment if it has not done so yet."""
        segment = self._adopt(view)
        description, descriptor = b"", None
        if (peer, segment) not in self._shown:
            description, descriptor = self._segments.export(view)
            self._shown.add((peer, segment))
        rows, cols = view.shape
        return OfferedPart(
            segment=segment,
            offset=view.data_ptr() - view.untyped_storage().data_ptr(),
            rows=rows,
            row_bytes=cols * view.itemsize,
            stride_bytes=view.stride(0) * view.itemsize,
            description=description,
            descriptor=descriptor,
        )

    def _return_finished(self) -> None:
        while self._released and self._released[0][0].passed():
            self._return(self._released.popleft()[1])

    def _return(self, loan: PeerLoan) -> None:
        try:
            self._link(loan.operation).give_back(loan.number)
        except LinkClosed as error:
            raise loan.operation.failed(error) from error

    def _adopt(self, view: torch.Tensor) -> int:
        """Number of the segment that a view's allocation is."""
        storage = view.untyped_storage()
        index, alive = self._adopted.get(storage.data_ptr(), (0, None))
        if alive is None or alive.expired():  # type: ignore[no-untyped-call]  # torch declares none
            index, alive = next(self._numbers), StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # the same
            self._adopted[storage.data_ptr()] = index, alive
        return index

    def _bounce(self, buffer: torch.Tensor) -> torch.Tensor:
        """A segment that begins with a copy of a buffer."""
        fitting = [spare for spare in self._spare if spare.nbytes >= buffer.nbytes]
        segment = fitting[0] if fitting else self.allocate(buffer.nbytes)
        self._spare = [spare for spare in self._spare if spare is not segment]
        segment[: buffer.nbytes].copy_(buffer.view(-1).view(torch.uint8))
        return segment

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
