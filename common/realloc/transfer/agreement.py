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

RunsOf = Callable[[Direction, Stream], Int64]
"""Runs of a stream, int64 [runs, 2], on this side: what could move as it is."""


def agree_on_cuts(
    chunks: ProgramChunks,
    runs_of: RunsOf,
    communicator: Communicator,
    deadline: float,
) -> None:
    """Cut every stream alike on both sides, at the ends of the long runs of either.

    One short message to and from each peer. Peers that lend memory are left out: where to cut
    makes no difference there.

    Raises:
        Unavailable: a peer is gone or late, or has another program.
    """
    peers = [peer for peer in chunks.peers() if communicator.memory(peer) is Memory.ANY]
    streams = {
        peer: [
            (direction, stream)
            for direction in (Direction.SEND, Direction.RECEIVE)
            for stream in chunks.streams(direction, peer)
        ]
        for peer in peers
    }
    mine = {peer: [runs_of(*item).reshape(-1) for item in streams[peer]] for peer in peers}
    lengths = {peer: np.array([len(runs) for runs in mine[peer]], np.int64) for peer in peers}
    empty = {peer: np.empty(len(streams[peer]), np.int64) for peer in peers}
    their_lengths = _exchange(communicator, lengths, empty, deadline)
    theirs = _exchange(
        communicator,
        {peer: np.concatenate(mine[peer]) for peer in peers},
        {peer: np.empty(int(their_lengths[peer].sum()), np.int64) for peer in peers},
        deadline,
    )
    for peer in peers:
        parts = np.split(theirs[peer], np.cumsum(their_lengths[peer])[:-1])
        # What I send they receive: their list has the two directions the other way round.
        num_receives = len(chunks.streams(Direction.RECEIVE, peer))
        parts = parts[num_receives:] + parts[:num_receives]
        for (_, stream), here, there in zip(streams[peer], mine[peer], parts, strict=True):
            both = here.reshape(-1, 2), there.reshape(-1, 2)
            chunks.cut(stream, chunk_ends(stream.num_elements, both, chunks.chunk_elements))


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
        if not len(buffer):
            continue
        with communicator.group():
            if sender == here:
                in_flight.append(communicator.send(buffer, peer=peer, round=0))
            else:
                received[peer] = buffer
                in_flight.append(communicator.receive(buffer, peer=peer, round=0))
    while in_flight:
        finish()
    communicator.settle()
    return {
        peer: received[peer].cpu().numpy() if peer in received else incoming[peer]
        for peer in incoming
    }
