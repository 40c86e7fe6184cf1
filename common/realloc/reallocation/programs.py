"""Programs, made when asked for: what one process sends and receives, block by block.

A plan is kept as flows of lines, which is small; the blocks of one process follow from the
flows that touch it. Both ends of a message come to the same elements in the same order, each
by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from realloc.core.transfer import Messages, TransferProgram
from realloc.reallocation.blocks import (
    blocks_of,
    merge_adjacent,
    receive_places,
    rectangles_of,
    send_places,
)
from realloc.reallocation.flows import Routes
from realloc.reallocation.lines import Lines
from realloc.reallocation.parts import Parts, parts_of
from realloc.reallocation.runs import run_edges
from realloc.reallocation.schedule import Schedule
from realloc.reallocation.sides import Side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedPrograms(Sequence[TransferProgram]):
    """One program per endpoint; indexing computes it."""

    lines: Lines
    source: Side
    destination: Side
    routes: Routes
    schedule: Schedule
    num_endpoints: int
    least_run_elements: int
    """Of a run of memory that is worth an operation of its own."""

    def __len__(self) -> int:
        return self.num_endpoints

    @overload
    def __getitem__(self, index: int) -> TransferProgram: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TransferProgram, ...]: ...
    def __getitem__(self, index: int | slice) -> TransferProgram | tuple[TransferProgram, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.num_endpoints)))
        return self._program(range(self.num_endpoints)[index])

    def _program(self, endpoint: int) -> TransferProgram:
        parts = parts_of(self.lines, self.routes, self.schedule, endpoint)
        source_tensors = _names(self.source, endpoint)
        return TransferProgram(
            endpoint=endpoint,
            source_tensors=source_tensors,
            destination_tensors=_names(self.destination, endpoint),
            sends=self._messages(parts.sends, len(source_tensors), sending=True),
            receives=self._messages(parts.receives, _most_tensors(self.source), sending=False),
            num_rounds=self.schedule.num_rounds,
        )

    def _messages(self, parts: Parts, num_source: int, *, sending: bool) -> Messages:
        """Parts with the same round and peer are one message.

        Args:
            num_source: as many as the sender has source parameters, or more.
        """
        new = (np.diff(parts.peer, prepend=-1) != 0) | (np.diff(parts.round, prepend=-1) != 0)
        first = np.flatnonzero(new)
        rectangles = rectangles_of(self.lines, parts)
        message = (np.cumsum(new) - 1)[rectangles.part]
        sent, received = (
            blocks_of(self.lines, rectangles, places, parts)
            for places in (
                send_places(parts, self.source, self.destination, num_source),
                receive_places(parts, self.destination),
            )
        )
        first_cut, cut = run_edges((sent, received), message, len(first), self.least_run_elements)
        blocks, message = merge_adjacent(sent if sending else received, message)
        return Messages(
            peer=parts.peer[first].astype(np.int32),
            round=parts.round[first].astype(np.int32),
            first_block=np.searchsorted(message, np.arange(len(first) + 1)),
            first_cut=first_cut,
            cut=cut,
            blocks=blocks,
        )


def _most_tensors(side: Side) -> int:
    """No rank has more parameters."""
    return int((side.num_outer + side.num_layer * len(side.layer_stage)).max())


def _names(side: Side, endpoint: int) -> tuple[str, ...]:
    ranks = np.flatnonzero(side.endpoint == endpoint)
    return side.tensor_names.of_rank(int(ranks[0])) if len(ranks) else ()
