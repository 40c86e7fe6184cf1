"""Flows: parts of lines that one process sends another, as arrays."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from realloc.core.transfer import Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flows:
    """Struct of arrays, one entry per part of a line that one process sends another."""

    line: Int64
    begin: Int64
    end: Int64
    """Elements of the line."""
    sender: Int64
    """Endpoint; it reads rank ``sender_rank``'s parameters by ``sender_place``."""
    sender_rank: Int64
    sender_place: Int64
    receiver: Int64
    receiver_rank: Int64
    receiver_place: Int64

    def __len__(self) -> int:
        return len(self.line)

    def take(self, index: NDArray[np.int64]) -> "Flows":
        """The flows at these positions."""
        return Flows(**{name: getattr(self, name)[index] for name in _FLOW_FIELDS})

    def with_range(self, begin: Int64, end: Int64) -> "Flows":
        """The same flows over other elements of their lines."""
        return replace(self, begin=begin, end=end)

    @staticmethod
    def concatenate(first: "Flows", second: "Flows") -> "Flows":
        """The flows of both, one after the other."""
        return Flows(
            **{
                name: np.concatenate([getattr(first, name), getattr(second, name)])
                for name in _FLOW_FIELDS
            }
        )

    @property
    def num_elements(self) -> Int64:
        return self.end - self.begin


_FLOW_FIELDS = (
    "line",
    "begin",
    "end",
    "sender",
    "sender_rank",
    "sender_place",
    "receiver",
    "receiver_rank",
    "receiver_place",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routes:
    """All flows of a plan, and how far from balance they are."""

    direct: Flows
    """From source ranks, ordered by pair of processes, small lines first."""
    forwards: Flows
    """From destination ranks that received the same part before, ordered by ``parent``."""
    parent: Int64
    """[forwards] the direct flow whose part is passed on."""
    bounds: "LinkBounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBounds:
    """Least possible elements on the busiest link, in any spread over replicas."""

    inside_send: int
    """To other devices of the node."""
    network_send: int
    network_receive: int
