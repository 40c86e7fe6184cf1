"""The two sides of each stream tell each other where they would cut it."""

import time
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch

from realloc.core.transfer import Int64
from realloc.transfer.chunks import ProgramChunks
from realloc.transfer.communicator import Communicator, Direction, Memory, Pending
from realloc.transfer.cuts import LEAST_RUN_BYTES, chunk_ends
from realloc.transfer.streams import Stream


def agree_on_cuts(
    chunks: ProgramChunks, communicator: Communicator, itemsize: int, deadline: float
) -> None:
    """Cut every stream alike on both sides, at the ends of the long runs of either.

    Two short messages to and from each peer. Peers that lend memory are left out: there every
    chunk is copied by both sides wherever it is cut.

    Raises:
        Unavailable: a peer is gone or late, or has another program.
    """
    least = max(1, LEAST_RUN_BYTES // itemsize)
    peers = [peer for peer in chunks.peers() if communicator.memory(peer) is Memory.ANY]
    streams = {peer: _streams(chunks, peer) for peer in peers}
    mine = {peer: [stream.run_ends(least) for stream in streams[peer]] for peer in peers}
    lengths = {peer: np.array([len(ends) for ends in mine[peer]], np.int64) for peer in peers}
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
        num_sends = len(chunks.streams(Direction.SEND, peer))
        num_receives = len(streams[peer]) - num_sends
        parts = parts[num_receives:] + parts[:num_receives]
        for stream, own, other in zip(streams[peer], mine[peer], parts, strict=True):
            wanted = np.union1d(own, other)
            chunks.cut(stream, chunk_ends(stream.num_elements, wanted, chunks.chunk_elements))


def _streams(chunks: ProgramChunks, peer: int) -> list[Stream]:
    return chunks.streams(Direction.SEND, peer) + chunks.streams(Direction.RECEIVE, peer)


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
    return {
        peer: received[peer].cpu().numpy() if peer in received else incoming[peer]
        for peer in incoming
    }
