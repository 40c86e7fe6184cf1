"""What all communicators of one kind of memory share: which end of the connections they are."""

from contextlib import AbstractContextManager, nullcontext

import torch

from realloc.transfer.communicator import Direction, Operation

MAX_OPERATIONS = 256
"""Unfinished operations per endpoint; each holds a buffer, none a thread."""


class OwnEnd:
    """The parts of a `Communicator` that say who and how many; operations begin one by one."""

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

    def group(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _operation(self, direction: Direction, size_bytes: int, peer: int, round: int) -> Operation:
        return Operation(
            endpoint=self._endpoint,
            direction=direction,
            peer=peer,
            round=round,
            size_bytes=size_bytes,
        )
