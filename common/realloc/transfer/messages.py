"""What communicators share that move every message, and lend no memory: gloo, NCCL, threads."""

from collections.abc import Sequence
from typing import NoReturn

import torch

from realloc.transfer.communicator import Memory
from realloc.transfer.own_end import OwnEnd


class MessageCommunicator(OwnEnd):
    """The parts of a `Communicator` that are the same for all of them."""

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def memory(self, peer: int) -> Memory:
        return Memory.ANY

    def lends(self, memory: torch.Tensor) -> bool:
        return False

    def lend(self, views: Sequence[torch.Tensor], *, peer: int, round: int) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} lends no memory")

    def borrow(self, size_bytes: int, *, peer: int, round: int) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} lends no memory")

    def settle(self) -> None:
        """Nothing is lent."""
