"""Endpoints that reach some peers one way and the others another way."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from realloc.transfer.communicator import (
    Borrowed,
    Communicator,
    Direction,
    Memory,
    Operation,
    Pending,
)


class CompositeCommunicator:
    """See `Communicator`. Each peer has its route: shared memory, CUDA IPC, gloo, NCCL."""

    def __init__(self, routes: Mapping[int, Communicator], staging: Communicator) -> None:
        """Take over connected communicators; `close` closes them.

        Args:
            routes: the communicator that reaches each peer; all number the endpoints alike.
            staging: the one whose buffers serve all of them: one that lends memory, if any.
        """
        self._routes = dict(routes)
        self._staging = staging
        self._distinct = list({id(route): route for route in (staging, *routes.values())}.values())

    @property
    def endpoint(self) -> int:
        return self._staging.endpoint

    @property
    def num_endpoints(self) -> int:
        return self._staging.num_endpoints

    @property
    def device(self) -> torch.device:
        return self._staging.device

    @property
    def max_operations(self) -> int:
        return min(route.max_operations for route in self._distinct)

    @property
    def batch_size(self) -> int:
        return max(route.batch_size for route in self._distinct)

    def memory(self, peer: int) -> Memory:
        return self._route(Direction.SEND, peer).memory(peer)

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return self._staging.allocate(size_bytes)

    def lends(self, memory: torch.Tensor) -> bool:
        return self._staging.lends(memory)

    def group(self) -> AbstractContextManager[None]:
        return self._group()

    @contextmanager
    def _group(self) -> Iterator[None]:
        with ExitStack() as stack:
            for route in self._distinct:
                stack.enter_context(route.group())
            yield

    def send(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        return self._route(Direction.SEND, peer, round, buffer.nbytes).send(
            buffer, peer=peer, round=round
        )

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> Pending:
        size_bytes = sum(view.nbytes for view in views)
        return self._route(Direction.SEND, peer, round, size_bytes).lend(
            views, peer=peer, round=round
        )

    def receive(self, buffer: torch.Tensor, *, peer: int, round: int) -> Pending:
        return self._route(Direction.RECEIVE, peer, round, buffer.nbytes).receive(
            buffer, peer=peer, round=round
        )

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> Borrowed:
        return self._route(Direction.RECEIVE, peer, round, size_bytes).borrow(
            size_bytes, peer=peer, round=round
        )

    def _route(
        self, direction: Direction, peer: int, round: int = 0, size_bytes: int = 0
    ) -> Communicator:
        route = self._routes.get(peer)
        if route is None:
            operation = Operation(
                endpoint=self.endpoint,
                direction=direction,
                peer=peer,
                round=round,
                size_bytes=size_bytes,
            )
            raise operation.failed(
                "no way leads to the peer: it is the second process of a device of another machine"
            )
        return route

    def settle(self) -> None:
        for route in self._distinct:
            route.settle()

    def close(self) -> None:
        for route in self._distinct:
            route.close()
