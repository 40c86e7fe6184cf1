"""What of a program has moved: digests summed in passing, and arrivals told."""

from collections.abc import Callable, Sequence

import torch

from realloc.core.transfer import TransferProgram
from realloc.transfer.arrivals import Arrival, Arrivals
from realloc.transfer.chunks import Chunk
from realloc.transfer.communicator import Direction
from realloc.transfer.digest import PassingDigests
from realloc.transfer.matching import Strip, copy_matched
from realloc.transfer.parameters import Parameters
from realloc.transfer.parts import Part, Parts
from realloc.transfer.summing import Summed


class Ledger:
    """Is told of every chunk once, after it was sent and after it is in place."""

    def __init__(
        self,
        *,
        program: TransferProgram,
        source: Parameters,
        destination: Parameters,
        dtype: torch.dtype,
        digests: bool,
        arrived: Callable[[Arrival], None] | None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._sends = Parts(program.sends, by_peer=True) if digests else None
        self._receives = (
            Parts(program.receives, by_peer=False) if digests or arrived is not None else None
        )
        self._sent: PassingDigests | None = None
        self._received: PassingDigests | None = None
        self._arrivals: Arrivals | None = None
        if self._sends is not None and self._receives is not None:
            self._sent = PassingDigests(source, dtype, len(self._sends), fixed=True)
            self._received = PassingDigests(destination, dtype, len(self._receives), fixed=False)
        if self._receives is not None and arrived is not None:
            self._arrivals = Arrivals(self._receives, self._received, arrived)

    def sent(self, chunk: Chunk, elements: torch.Tensor | None) -> None:
        """A chunk is on its way.

        Args:
            elements: the chunk as it moves; None where it is the parameters' own memory.
        """
        if self._sends is not None and self._sent is not None:
            parts = self._sends.between(chunk.stream, chunk.first, chunk.last)
            self._sent.add(parts, elements)

    def copy_out(self, chunk: Chunk, target: Sequence[Strip]) -> None:
        """Copy a chunk from the source parameters, of the type that moves, and enter it as sent."""
        if self._sends is not None and self._sent is not None:
            parts = self._sends.between(chunk.stream, chunk.first, chunk.last)
            if self._sent.add_copied(parts, target, Direction.SEND, Summed.SOURCE):
                return
        copy_matched(target, map(self._source.strip, chunk.pieces()))
        self.sent(chunk, None)

    def copy_in(self, chunk: Chunk, source: Sequence[Strip], summed: Summed) -> None:
        """Copy a chunk to the destination parameters, of the type that moves, and enter it as
        received.

        Args:
            summed: SOURCE only of memory that nobody else writes.
        """
        if self._receives is not None and self._received is not None:
            parts = self._receives.between(chunk.stream, chunk.first, chunk.last)
            if self._received.add_copied(parts, source, Direction.RECEIVE, summed):
                self._tell(parts)
                return
        copy_matched(map(self._destination.strip, chunk.pieces()), source)
        self.received(chunk, None)

    def received(self, chunk: Chunk, elements: torch.Tensor | None) -> None:
        """A chunk lies in the parameters; `elements` as in `sent`."""
        if self._receives is None:
            return
        parts = self._receives.between(chunk.stream, chunk.first, chunk.last)
        if self._received is not None:
            self._received.add(parts, elements)
        self._tell(parts)

    def _tell(self, parts: tuple[Part, ...]) -> None:
        if self._arrivals is not None:
            self._arrivals.add(parts)

    def sent_digests(self) -> dict[tuple[int, int], int]:
        """By (destination endpoint, canonical tensor), signed 64 bits."""
        if self._sends is None or self._sent is None:
            return {}
        keys = zip(self._sends.peer, self._sends.canonical, strict=True)
        return dict(zip(keys, self._sent.values().tolist(), strict=True))

    def received_digests(self) -> dict[int, int]:
        """By canonical tensor, signed 64 bits."""
        if self._receives is None or self._received is None:
            return {}
        return dict(zip(self._receives.canonical, self._received.values().tolist(), strict=True))
