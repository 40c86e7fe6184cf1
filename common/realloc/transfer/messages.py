"""What communicators share that move every message, and lend no memory: gloo, NCCL, threads."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch

from realloc.transfer.communicator import Direction, Memory, Operation

MAX_OPERATIONS = 256
"""Unfinished operations per endpoint; each holds a buffer, none a thread."""


class MessageCommunicator:
    """The parts of a `Communicator` that are the same for all of them."""

    def __init__(self, *, endpoint: int, num_endpoints: int, device: torch.device) -> None:
        self._endpoint = endpoint
        self._num_endpoints = num_endpoints
        self._device = device

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

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def memory(self, peer: int) -> Memory:
        return Memory.ANY

    def group(self) -> AbstractContextManager[None]:
        return nullcontext()

    def lends(self, memory: torch.Tensor) -> bool:
        return False

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} lends no memory")

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} lends no memory")

    def settle(self) -> None:
        """Nothing is lent."""

    def _operation(
        self, direction: Direction, buffer: torch.Tensor, peer: int, round: int
    ) -> Operation:
        return Operation(
            endpoint=self._endpoint,
            direction=direction,
            peer=peer,
            round=round,
            size_bytes=buffer.nbytes,
        )
