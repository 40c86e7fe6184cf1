"""The two sides of each stream tell each other where they would cut it."""

import time
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import torch

from realloc.core.transfer import Int64
from realloc.transfer.chunks import ProgramChunks
from realloc.transfer.communicator import Communicator, Direction, Memory, Pending
from realloc.transfer.cuts import chunk_ends
from realloc.transfer.streams import Stream

RunsOf = Callable[[Direction, Stream, int], Int64]
"""Runs of a stream of at least a number of elements, int64 [runs, 2], on this side: what could
move as it is."""


def agree_on_cuts(
    chunks: ProgramChunks,
    runs_of: RunsOf,
    communicator: Communicator,
    least_run: int,
    deadline: float,
) -> None:
    """Cut every stream alike on both sides, at the ends of the long runs of either.

    One short message to and from each peer. Peers that lend memory are left out: where to cut
    makes no difference there.

    Args:
        least_run: elements of the shortest run that counts; the same on all endpoints.

    Raises:
        Unavailable: a peer is gone or late, or has another program.
    """
    peers = [peer for peer in chunks.peers() if communicator.memory(peer) is Memory.ANY]
    directions = (Direction.SEND, Direction.RECEIVE)
    streams = {
        peer: [(side, stream) for side in directions for stream in chunks.streams(side, peer)]
        for peer in peers
    }
    mine = {
        peer: [runs_of(side, stream, least_run) for side, stream in streams[peer]] for peer in peers
    }
    # What I send they receive: their list has the two directions the other way round.
    theirs = {
        peer: [stream for side in directions[::-1] for stream in chunks.streams(side, peer)]
        for peer in peers
    }
    answers = _exchange(
        communicator,
        {
            peer: _written([stream for _, stream in streams[peer]], mine[peer], least_run)
            for peer in peers
        },
        {peer: np.zeros(_room(theirs[peer], least_run).sum(), np.int64) for peer in peers},
        deadline,
    )
    for peer in peers:
        other = dict(
            zip(map(id, theirs[peer]), _read(theirs[peer], answers[peer], least_run), strict=True)
        )
        for (_, stream), runs in zip(streams[peer], mine[peer], strict=True):
            both = runs, other[id(stream)]
            chunks.cut(stream, chunk_ends(stream.num_elements, both, chunks.chunk_elements))


def _room(streams: list[Stream], least_run: int) -> Int64:
    """Integers that the runs of each stream take at most, with their number."""
    return np.array([1 + 2 * (s.num_elements // least_run) for s in streams], dtype=np.int64)


def _written(streams: list[Stream], runs: list[Int64], least_run: int) -> Int64:
    """The runs of all streams in one array, whose length both sides know."""
    room = _room(streams, least_run)
    array = np.zeros(room.sum(), dtype=np.int64)
    for begin, of_stream in zip(np.cumsum(room) - room, runs, strict=True):
        array[begin] = len(of_stream)
        array[begin + 1 : begin + 1 + of_stream.size] = of_stream.reshape(-1)
    return array


def _read(streams: list[Stream], array: Int64, least_run: int) -> list[Int64]:
    """The runs that `_written` wrote."""
    room = _room(streams, least_run)
    return [
        array[begin + 1 : begin + 1 + 2 * array[begin]].reshape(-1, 2)
        for begin in np.cumsum(room) - room
    ]


def _exchange(
    communicator: Communicator,
    outgoing: Mapping[int, Int64],
    incoming: Mapping[int, Int64],
    deadline: float,
) -> dict[int, Int64]:
    """Send an array to each peer and receive one, in an order that all endpoints share."""
    here = communicator.endpoint
    pairs = sorted([(here, peer) for peer in outgoing] + [(peer, here) for peer in incoming])
    received: dict[int, torch.Tensor] = {}
    in_flight: deque[Pending] = deque()

    def finish() -> None:
        in_flight.popleft().wait(max(deadline - time.monotonic(), 0.0))

    for sender, receiver in pairs:
        if len(in_flight) >= communicator.max_operations:
            finish()
        peer = receiver if sender == here else sender
        array = torch.from_numpy(outgoing[peer] if sender == here else incoming[peer])
        buffer = array.to(communicator.device)
        with communicator.group():
            if sender == here:
                in_flight.append(communicator.send(buffer, peer=peer, round=0))
            else:
                received[peer] = buffer
                in_flight.append(communicator.receive(buffer, peer=peer, round=0))
    while in_flight:
        finish()
    return {peer: array.cpu().numpy() for peer, array in received.items()}
