"""Transfer plans: what moves where when a model changes its layout.

A *block* is a strided rectangle of a local parameter: ``rows`` runs of ``cols`` elements,
each ``row_stride`` elements after the one before, the first at element ``start`` of the
parameter's contiguous storage. Every box of a canonical tensor that an engine stores is
such a block, however the engine fuses or stacks its parameters. Blocks are kept as arrays,
not objects: a large plan has millions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A process that takes part in a transfer."""

    name: str
    """Unique name of the shard, such as ``trainer-0``."""
    device: int
    """Global id of the device that the process owns."""
    node: int
    """Index of the node that holds the device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """Struct of arrays, one entry per block; see the module's text."""

    tensor: Int32
    """Index into the program's list of local parameter names. In sends, numbers from
    ``len(source_tensors)`` on mean destination tensors: a received part is passed on."""
    start: Int64
    rows: Int64
    cols: Int64
    row_stride: Int64
    canonical: Int32
    """Index into the plan's list of canonical tensor names, for digests."""
    canonical_start: Int64
    """Element of the canonical tensor where the block begins."""
    canonical_stride: Int64
    """Elements from one row of the block to the next in the canonical tensor."""

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def num_elements(self) -> int:
        return int((self.rows * self.cols).sum())

    def take(self, which: slice) -> "Blocks":
        """Some of the blocks."""
        return Blocks(**{of.name: getattr(self, of.name)[which] for of in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Messages:
    """What one endpoint sends (or receives), in order; blocks are packed back to back."""

    peer: Int32
    """[M] endpoint index of the other side; two messages of a pair match by their order."""
    round: Int32
    """[M] non-decreasing round in which the message moves."""
    first_block: Int64
    """[M + 1] message m is blocks first_block[m] … first_block[m + 1] − 1."""
    first_cut: Int64
    """[M + 1] message m has cuts first_cut[m] … first_cut[m + 1] − 1."""
    cut: Int64
    """[C] elements of the message, ascending, where a long run of memory begins or ends on either
    side; both sides have the same. What moves between two of them may move in place."""
    blocks: Blocks

    def __len__(self) -> int:
        return len(self.peer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferProgram:
    """What one endpoint does: send blocks of its source parameters, receive into others.

    A block that stays in its process is a message to itself. A message's blocks, packed back
    to back in row-major order, are the same elements in the same order on both sides; the
    two sides may cut them into blocks differently.

    Sends may also read *destination* parameters (block tensor ``len(source_tensors) + i`` is
    ``destination_tensors[i]``): the endpoint passes on what it received at least two rounds
    earlier, so that the packing of round k + 1 may overlap the transfer of round k.
    """

    endpoint: int
    source_tensors: tuple[str, ...]
    destination_tensors: tuple[str, ...]
    sends: Messages
    receives: Messages
    num_rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """A parameter as its engine stores it on one rank."""

    name: str
    shape: tuple[int, ...]
    dtype: str = ""
    """Element type, such as ``float32``; empty where any floating point type will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedParameters:
    """What a rank must hold for its program to make sense."""

    rank: str
    """Rank and layout, for errors."""
    source: tuple[ParameterSpec, ...] = ()
    """What the program reads."""
    destination: tuple[ParameterSpec, ...] = ()
    """What the program writes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferPlan:
    """A whole reallocation: a program per endpoint and what it costs."""

    endpoints: tuple[Endpoint, ...]
    canonical_tensors: tuple[str, ...]
    dtype: str
    """Element type on the way: ``float32`` or ``bfloat16``."""
    programs: Sequence[TransferProgram]
    """[endpoints] made when indexed: keep what you index."""
    traffic: "Traffic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of a transfer plan, each beside the least that any plan can reach."""

    # A byte that the destination's device (node) already holds need not cross; each distinct
    # byte must enter a node that lacks it once.

    total_bytes: int
    """Bytes written at all destinations."""
    local_bytes: int
    """Bytes whose source lies on the destination's own device."""
    cross_device_bytes: int
    cross_device_bound: int
    cross_node_bytes: int
    cross_node_bound: int
    busiest_send_bytes: int
    """Most bytes that one device sends over its slowest kind of link in use: to other nodes
    where anything crosses nodes, else to other devices."""
    busiest_receive_bytes: int
    """The same for what one device receives."""
    busiest_send_bound: int
    """The least that the busiest link can have, however the bytes that must cross are spread
    over the replicas; so for the other bounds."""
    busiest_receive_bound: int
    cross_process_bytes: int = 0
    """Bytes that come from another process, on whatever device."""
    inside_send_bytes: int = 0
    """Most bytes that one device sends to other devices of its node."""
    inside_send_bound: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSession:
    """One reallocation as its endpoints see it."""

    session_id: str
    group_id: str
    """Names the transfer world; equal for equal sets of processes."""
    store_host: str
    store_port: int
    num_endpoints: int
    canonical_tensors: tuple[str, ...]
    dtype: str
    timeout_seconds: float
    uncast: tuple[int, ...] = ()
    """Endpoints whose parameters all have the element type that moves; known when all have
    prepared. What two of them move need not fit staging buffers."""
