"""Digests of what programs send and receive, on the device where the elements lie.

`realloc.reallocation.digest` defines the numbers, `realloc.transfer.summing` sums them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from realloc.core.transfer import Int64, TransferProgram
from realloc.transfer.communicator import Direction
from realloc.transfer.matching import Strip, matched
from realloc.transfer.parameters import Parameters
from realloc.transfer.parts import Part, Parts
from realloc.transfer.summing import CompiledSums, DigestSums, Rectangle, Summed, sums_on

_SCRATCH_ELEMENTS = 1 << 20
"""Where parameters have another type than counts, this many elements are cast at once."""


class PassingDigests:
    """Digests of one direction of a program, summed chunk by chunk while its bytes move.

    Elements are read where the parameter keeps them; where that has another type than moves,
    in the chunk that moves.
    """

    def __init__(
        self, parameters: Parameters, dtype: torch.dtype, num_keys: int, *, fixed: bool
    ) -> None:
        """Start with zeros.

        Args:
            parameters: what is sent, or what is written.
            dtype: element type on the way, whose bits count.
            num_keys: number of digests; parts name theirs by `Part.key`.
            fixed: whether nobody writes the parameters meanwhile. What goes to several endpoints
                is then read once, where it moves in place.
        """
        self._fixed = fixed
        self._parameters = parameters
        self._dtype = dtype
        self._num_keys = num_keys
        self._sums: dict[torch.device, DigestSums] = {}

    def add(self, parts: tuple[Part, ...], elements: torch.Tensor | None) -> None:
        """Sum the parts of one chunk, which is `elements`; None where all lies in parameters."""
        for part in parts:
            flat = self._parameters.flat[part.tensor]
            if flat.dtype == self._dtype:
                sums = self._on(flat.device)
                add = sums.add_fixed if self._fixed else sums.add
                add(part.key, flat, part.rectangle)
                continue
            assert elements is not None, "cast elements are only in the chunk"
            sums = self._on(elements.device)
            sums.add(part.key, elements, part.rectangle.packed(part.offset))
            sums.settle()

    def add_copied(
        self,
        parts: tuple[Part, ...],
        others: Sequence[Strip],
        direction: Direction,
        summed: Summed,
    ) -> bool:
        """Copy the parts of one chunk to other strips (SEND), or from these (RECEIVE), and sum
        them in the same pass; False, and nothing done, where that cannot be."""
        flats = [self._parameters.flat[part.tensor] for part in parts]
        memories = [*flats, *(other.flat for other in others)]
        if any(m.device.type != "cpu" or m.dtype != self._dtype for m in memories):
            return False
        sums = self._on(memories[0].device)
        assert isinstance(sums, CompiledSums)
        own = [_strip(part, flat) for part, flat in zip(parts, flats, strict=True)]
        pairs = matched(own, others)
        for part in parts:
            rectangle, done = part.rectangle, 0
            while done < rectangle.num_elements:
                ours, theirs = next(pairs)
                row, col = divmod(done, rectangle.cols)
                start = rectangle.canonical_start + row * rectangle.canonical_stride + col
                # Rows that are cut out of a run follow each other in the tensor too.
                stride = rectangle.canonical_stride if rectangle.rows > 1 else ours.cols
                to, of = (theirs, ours) if direction is Direction.SEND else (ours, theirs)
                sums.add_copied(part.key, to, of, start, stride, summed)
                done += ours.rows * ours.cols
        return True

    def values(self) -> Int64:
        """The digests so far, int64 [num_keys]."""
        total = np.zeros(self._num_keys, dtype=np.int64)
        for sums in self._sums.values():
            total += sums.values()
        return total

    def _on(self, device: torch.device) -> DigestSums:
        if device not in self._sums:
            self._sums[device] = sums_on(device, self._num_keys)
        return self._sums[device]


def _strip(part: Part, flat: torch.Tensor) -> Strip:
    at = part.rectangle
    return Strip(flat, at.start, at.rows, at.cols, at.row_stride)


class SentDigests:
    """Digests of what a program sends, by destination endpoint and canonical tensor, without
    sending it. A block that goes to several endpoints is read once.
    """

    def __init__(
        self, program: TransferProgram, parameters: Parameters, dtype: torch.dtype
    ) -> None:
        """Group the blocks of all sends; read none yet.

        Args:
            parameters: as `executor.source_parameters` makes them.
            dtype: element type whose bits count; parameters of another type are cast to it.
        """
        blocks = program.sends.blocks
        places = np.stack(
            (blocks.tensor, blocks.start, blocks.rows, blocks.cols, blocks.row_stride,
             blocks.canonical, blocks.canonical_start, blocks.canonical_stride),
            axis=1,
        )  # fmt: skip
        _, self._distinct, number = np.unique(
            places, axis=0, return_index=True, return_inverse=True
        )
        self._own = np.flatnonzero(blocks.tensor[self._distinct] < len(program.source_tensors))
        self._number = number.reshape(-1)
        self._parts = Parts(program.sends, by_peer=True)
        self._parameters = parameters
        self._dtype = dtype
        self._scratch: torch.Tensor | None = None
        self._sums = sums_on(parameters.device, len(self._distinct))

    def own_steps(self) -> Iterator[None]:
        """The work on source parameters, in steps. What the program receives and passes
        on is left out: it is not there yet."""
        for number in self._own.tolist():
            part = self._parts.whole(int(self._distinct[number]))
            flat = self._parameters.flat[part.tensor]
            if flat.dtype == self._dtype:
                self._sums.add(number, flat, part.rectangle)
                yield
                continue
            for tile in part.rectangle.tiles(_SCRATCH_ELEMENTS):
                self._sums.add(number, self._cast(flat, tile), tile.packed(0))
                self._sums.settle()
                yield

    def values(self) -> dict[tuple[int, int], int]:
        """Sum per (destination endpoint, canonical tensor), signed 64 bits."""
        sums = np.zeros(len(self._parts), dtype=np.int64)
        np.add.at(sums, self._parts.key, self._sums.values()[self._number])
        keys = zip(self._parts.peer, self._parts.canonical, strict=True)
        return dict(zip(keys, sums.tolist(), strict=True))

    def _cast(self, flat: torch.Tensor, tile: Rectangle) -> torch.Tensor:
        """The tile's elements in the type that counts, packed in scratch."""
        if self._scratch is None:
            self._scratch = torch.empty(_SCRATCH_ELEMENTS, dtype=self._dtype, device=flat.device)
        shape = (tile.rows, tile.cols)
        elements = flat.as_strided(shape, (tile.row_stride, 1), flat.storage_offset() + tile.start)
        self._scratch[: tile.num_elements].view(shape).copy_(elements)
        return self._scratch
