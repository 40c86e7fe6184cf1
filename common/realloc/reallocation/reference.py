"""The oracle of reallocation: executes a plan in memory with numpy, and checks as it goes.

Each round packs every send of every endpoint before anything of that round is unpacked, as
the executors do. Buffers may alias (a source parameter may share memory with a destination
parameter); `execute` refuses a plan that would read memory after an earlier round wrote it.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Blocks, Messages, TransferPlan, TransferProgram

Array = NDArray[np.generic]
Parameters = Mapping[str, Array]
"""Contiguous arrays of one process by local parameter name."""


class HazardError(AssertionError):
    """The plan is wrong: it writes twice, reads what it overwrote, or does not match up."""


def execute(
    plan: TransferPlan,
    source_parameters: Mapping[str, Parameters],
    destination_parameters: Mapping[str, Parameters],
) -> None:
    """Execute a plan in place.

    Args:
        source_parameters: by endpoint name; what each process holds in the source layout.
        destination_parameters: by endpoint name; written in place.

    Raises:
        HazardError: an element is written twice, a send reads memory that an earlier round
            wrote other than by a finished receive, or two sides of a message disagree.
    """
    processes = [
        _Process(
            program,
            source_parameters.get(plan.endpoints[program.endpoint].name, {}),
            destination_parameters.get(plan.endpoints[program.endpoint].name, {}),
        )
        for program in plan.programs
    ]
    num_rounds = max((program.num_rounds for program in plan.programs), default=0)
    for number in range(num_rounds):
        in_flight: dict[tuple[int, int], deque[Array]] = {}
        for process in processes:
            for peer, data in process.pack(number):
                in_flight.setdefault((process.endpoint, peer), deque()).append(data)
        for process in processes:
            process.unpack(number, in_flight)
        left = [pair for pair, queue in in_flight.items() if queue]
        if left:
            raise HazardError(f"round {number}: nobody receives what {left[0]} sends")


class _Process:
    """One endpoint's buffers, and for every element the round that wrote it."""

    def __init__(
        self, program: TransferProgram, source: Parameters, destination: Parameters
    ) -> None:
        self.endpoint = program.endpoint
        self._program = program
        self._sources = [_flat(source[name]) for name in program.source_tensors]
        self._destinations = [_flat(destination[name]) for name in program.destination_tensors]
        self._written = [np.full(len(flat), -1) for flat in self._destinations]
        self._overlaps = [self._aliases(flat) for flat in self._sources]

    def _aliases(self, source: Array) -> list[tuple[int, int]]:
        """Destinations that share memory with a source, and by how many elements it is ahead."""
        found = []
        for index, flat in enumerate(self._destinations):
            if np.shares_memory(source, flat):
                ahead = source.ctypes.data - flat.ctypes.data
                found.append((index, ahead // flat.itemsize))
        return found

    def pack(self, number: int) -> list[tuple[int, Array]]:
        """The messages of one round, as (peer, elements)."""
        messages = self._program.sends
        return [
            (int(messages.peer[m]), self._gather(messages, m, number))
            for m in np.flatnonzero(messages.round == number)
        ]

    def _gather(self, messages: Messages, message: int, number: int) -> Array:
        parts = []
        for block in _range(messages, message):
            tensor = int(messages.blocks.tensor[block])
            index = elements_of(messages.blocks, block)
            if tensor >= len(self._sources):
                tensor -= len(self._sources)
                written = self._written[tensor][index]
                if (written < 0).any() or (written > number - 2).any():
                    raise HazardError(f"round {number}: passes on what is not two rounds old")
                parts.append(self._destinations[tensor][index])
            else:
                self._check_unwritten(tensor, index, number)
                parts.append(self._sources[tensor][index])
        return np.concatenate(parts)

    def _check_unwritten(self, tensor: int, index: NDArray[np.int64], number: int) -> None:
        for destination, ahead in self._overlaps[tensor]:
            written = self._written[destination]
            at = index + ahead
            at = at[(at >= 0) & (at < len(written))]
            if (written[at] >= 0).any():
                name = self._program.source_tensors[tensor]
                raise HazardError(f"round {number}: reads {name} after it was overwritten")

    def unpack(self, number: int, in_flight: dict[tuple[int, int], deque[Array]]) -> None:
        """Receive the messages of one round."""
        messages = self._program.receives
        for message in np.flatnonzero(messages.round == number):
            queue = in_flight.get((int(messages.peer[message]), self.endpoint))
            if not queue:
                raise HazardError(f"round {number}: {messages.peer[message]} sends nothing")
            self._scatter(messages, int(message), queue.popleft(), number)

    def _scatter(self, messages: Messages, message: int, data: Array, number: int) -> None:
        position = 0
        for block in _range(messages, message):
            tensor = int(messages.blocks.tensor[block])
            index = elements_of(messages.blocks, block)
            if (self._written[tensor][index] >= 0).any():
                name = self._program.destination_tensors[tensor]
                raise HazardError(f"round {number}: writes {name} twice")
            self._destinations[tensor][index] = data[position : position + len(index)]
            self._written[tensor][index] = number
            position += len(index)
        if position != len(data):
            raise HazardError(f"round {number}: expected {position} elements, got {len(data)}")


def elements_of(blocks: Blocks, block: int) -> NDArray[np.int64]:
    """Flat element indices of one block, in packing order."""
    rows = np.arange(blocks.rows[block], dtype=np.int64)[:, None]
    cols = np.arange(blocks.cols[block], dtype=np.int64)[None, :]
    index: NDArray[np.int64] = blocks.start[block] + rows * blocks.row_stride[block] + cols
    return index.reshape(-1)


def fill(blocks: Blocks, parameters: Sequence[Array], canonical: Sequence[Array]) -> None:
    """Write canonical tensors into a rank's parameters: what loading a checkpoint does."""
    for block in range(len(blocks)):
        flat = _flat(canonical[blocks.canonical[block]])
        rows = np.arange(blocks.rows[block], dtype=np.int64)[:, None]
        cols = np.arange(blocks.cols[block], dtype=np.int64)[None, :]
        at = blocks.canonical_start[block] + rows * blocks.canonical_stride[block] + cols
        target = _flat(parameters[blocks.tensor[block]])
        target[elements_of(blocks, block)] = flat[at.reshape(-1)]


def _range(messages: Messages, message: int) -> range:
    return range(int(messages.first_block[message]), int(messages.first_block[message + 1]))


def _flat(array: Array) -> Array:
    flat = array.reshape(-1)
    if not np.shares_memory(flat, array) and array.size:
        raise HazardError("parameters must be contiguous")
    return flat
