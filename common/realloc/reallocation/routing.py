"""Routes: which process sends which part of which line to whom.

Least traffic comes first. A rank whose device holds a line already copies it there. Where its
node holds the line, it comes from within the node. Else the line enters the node once, cut
into parts that enter at different devices, and each part is passed on inside the node by the
device where it entered. What freedom is left (which replica sends, where a part enters) goes
to balance: first the links between nodes, then those inside nodes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from realloc.core.transfer import Int64
from realloc.reallocation.balance import Demand, Float64, least_busiest, spread
from realloc.reallocation.flows import Flows, LinkBounds, Routes
from realloc.reallocation.lines import Lines
from realloc.reallocation.sides import Side


@dataclass(slots=True)
class _Requests:
    """The parts of lines that one set of candidates is asked for, in order."""

    lines: list[int] = field(default_factory=list)
    holders: list[tuple[int, ...]] = field(default_factory=list)
    """Each candidate's position among the line's sources (for entries: destinations)."""
    receivers: list[tuple[int, ...]] = field(default_factory=list)
    """Positions among the line's destinations."""
    amount: int = 0
    """Elements asked for, those included that left no choice and stand in no list."""

    def add(self, line: int, holders: tuple[int, ...], receivers: tuple[int, ...]) -> None:
        """Ask for a whole line."""
        self.lines.append(line)
        self.holders.append(holders)
        self.receivers.append(receivers)


_ROW_GRAIN = 256
"""A cut may move by this fraction of the part before it."""
_RequestsBySet = dict[tuple[int, ...], _Requests]
"""By candidates: ranks of the source (for entries: of the destination)."""
_Held = tuple[dict[int, int], dict[int, tuple[int, ...]]]
_Part = tuple[int, int, int]
"""Begin, end, and the position of who has it."""
_Cuts = dict[tuple[int, tuple[int, ...]], list[_Part]]
"""By line and receivers."""


def route(lines: Lines, source: Side, destination: Side) -> Routes:
    """Choose senders, entry points and forwards for every line."""
    router = Router(lines, source, destination)
    for line in range(len(lines.lines)):
        router.sort_needs(line)
    return router.routes()


class Router:
    """The state of one routing: flows so far, and what candidates are asked for."""

    def __init__(self, lines: Lines, source: Side, destination: Side) -> None:
        self._lines = lines
        self._source, self._destination = source, destination
        self._source_device = source.device.tolist()
        self._source_node = source.node.tolist()
        self._device = destination.device.tolist()
        self._node = destination.node.tolist()
        self._direct: list[tuple[int, ...]] = []
        self._forwards: list[tuple[int, ...]] = []
        self._held: dict[tuple[int, ...], _Held] = {}
        self._network: _RequestsBySet = {}
        self._inside: _RequestsBySet = {}
        self._entries: _RequestsBySet = {}

    def sort_needs(self, number: int) -> None:
        """Copy what is on the device; ask the node, else the network, for the rest."""
        line = self._lines.lines[number]
        on_device, in_node = self._where_held(line.sources)
        needs: dict[int, list[int]] = {}
        for j, rank in enumerate(line.destinations):
            i = on_device.get(self._device[rank], -1)
            if i >= 0:
                self._add_direct(number, 0, line.num_elements, i, j)
            else:
                needs.setdefault(self._node[rank], []).append(j)
        for node, missing in needs.items():
            if node in in_node:
                self._ask_node(number, in_node[node], missing)
            else:
                self._ask_network(number, tuple(missing))

    def _where_held(self, sources: tuple[int, ...]) -> _Held:
        """Positions in ``sources`` by device, and by node."""
        held = self._held.get(sources)
        if held is None:
            by_node: dict[int, list[int]] = {}
            for i, rank in enumerate(sources):
                by_node.setdefault(self._source_node[rank], []).append(i)
            held = self._held[sources] = (
                {self._source_device[rank]: i for i, rank in enumerate(sources)},
                {node: tuple(near) for node, near in by_node.items()},
            )
        return held

    def _ask_node(self, number: int, near: tuple[int, ...], missing: list[int]) -> None:
        """Each of the missing gets the line from one of those in its node."""
        line = self._lines.lines[number]
        of = _requests(self._inside, tuple(line.sources[i] for i in near))
        of.amount += line.num_elements * len(missing)
        for j in missing:
            if len(near) == 1:
                self._add_direct(number, 0, line.num_elements, near[0], j)
            else:
                of.add(number, near, (j,))

    def _ask_network(self, number: int, receivers: tuple[int, ...]) -> None:
        """The line enters a node once, at one of the receivers, and fans out to the others."""
        line = self._lines.lines[number]
        entries = _requests(self._entries, tuple(line.destinations[j] for j in receivers))
        network = _requests(self._network, line.sources)
        entries.amount += line.num_elements
        network.amount += line.num_elements
        if len(receivers) > 1:
            entries.add(number, receivers, receivers)
        if len(receivers) > 1 or len(line.sources) > 1:
            network.add(number, tuple(range(len(line.sources))), receivers)
        else:
            # Nothing to choose: most requests of finely cut layouts end here.
            self._add_direct(number, 0, line.num_elements, 0, receivers[0])

    def routes(self) -> Routes:
        """Spread what was asked for, and make the flows."""
        network, network_load = _spread(self._network, np.zeros(len(self._source_device)))
        entries, entry_load = _spread(self._entries, np.zeros(len(self._device)))
        bounds = (_bound(self._network, network_load), _bound(self._entries, entry_load))
        entered = self._cut(self._entries, entries)
        for (number, receivers), parts in self._cut(self._network, network).items():
            if len(receivers) > 1:
                self._enter(number, receivers, _refine(parts, entered[number, receivers]))
            else:
                self._add_parts(number, parts, receivers[0])
        inside, _ = _spread(self._inside, self._forwarded_by_sources())
        for (number, (j,)), parts in self._cut(self._inside, inside).items():
            self._add_parts(number, parts, j)
        return self._finish(bounds)

    def _cut(self, requests: _RequestsBySet, shares: list[Float64]) -> _Cuts:
        """Deal the requests of each set of candidates out to them, in runs."""
        cuts: _Cuts = {}
        for of, share in zip(requests.values(), shares, strict=True):
            ends = np.rint(np.cumsum(share)).astype(np.int64).tolist()
            ends[-1] = of.amount
            position, turn = 0, 0
            for number, holders, receivers in zip(of.lines, of.holders, of.receivers, strict=True):
                parts = cuts[number, receivers] = []
                begin, size = 0, self._lines.lines[number].num_elements
                while begin < size:
                    while ends[turn] <= position + begin:
                        turn += 1
                    end = min(size, ends[turn] - position)
                    if end < size:
                        end = self._at_row(number, begin, end)
                    parts.append((begin, end, holders[turn]))
                    if end < size:
                        turn += 1
                    begin = end
                position += size
        return cuts

    def _at_row(self, number: int, begin: int, end: int) -> int:
        """Move a cut down to the start of a row where that hardly changes the balance."""
        excess = int(self._lines.into_row(np.array([number]), np.array([end]))[0])
        return end - excess if excess * _ROW_GRAIN < end - begin else end

    def _enter(
        self, number: int, receivers: tuple[int, ...], parts: list[tuple[int, int, int, int]]
    ) -> None:
        """Flows of one line into one node, and the forwards inside it."""
        for begin, end, i, entry in parts:
            parent = len(self._direct)
            self._add_direct(number, begin, end, i, entry)
            for j in receivers:
                if j != entry:
                    self._add_forward(number, begin, end, entry, j, parent)

    def _add_parts(self, number: int, parts: list[_Part], j: int) -> None:
        for begin, end, i in parts:
            self._add_direct(number, begin, end, i, j)

    def _add_direct(self, number: int, begin: int, end: int, i: int, j: int) -> None:
        line = self._lines.lines[number]
        sender, receiver = line.sources[i], line.destinations[j]
        places = line.source_places[i], line.destination_places[j]
        self._direct.append((number, begin, end, sender, places[0], receiver, places[1]))

    def _add_forward(
        self, number: int, begin: int, end: int, entry: int, j: int, parent: int
    ) -> None:
        line = self._lines.lines[number]
        sender, receiver = line.destinations[entry], line.destinations[j]
        places = line.destination_places[entry], line.destination_places[j]
        self._forwards.append((number, begin, end, sender, places[0], receiver, places[1], parent))

    def _forwarded_by_sources(self) -> Float64:
        """What each source rank's device passes on as a destination."""
        rank_of = {device: rank for rank, device in enumerate(self._source_device)}
        load = np.zeros(len(self._source_device))
        for row in self._forwards:
            rank = rank_of.get(self._device[row[3]])
            if rank is not None:
                load[rank] += row[2] - row[1]
        return load

    def _finish(self, bounds: tuple[int, int]) -> Routes:
        sizes = np.array([line.num_elements for line in self._lines.lines], dtype=np.int64)
        rows = np.array(self._direct, dtype=np.int64).reshape(-1, 7)
        direct = _flows(rows, self._source.endpoint, self._destination.endpoint)
        order = np.lexsort(
            (direct.begin, direct.line, sizes[direct.line], direct.receiver, direct.sender)
        )
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        passed = np.array(self._forwards, dtype=np.int64).reshape(-1, 8)
        forwards = _flows(passed[:, :7], self._destination.endpoint, self._destination.endpoint)
        parent = inverse[passed[:, 7]]
        by_parent = np.lexsort((forwards.receiver, parent))
        direct, forwards = direct.take(order), forwards.take(by_parent)
        return Routes(
            direct=direct,
            forwards=forwards,
            parent=parent[by_parent],
            bounds=LinkBounds(
                inside_send=self._inside_bound(),
                network_send=bounds[0],
                network_receive=bounds[1],
            ),
        )

    def _inside_bound(self) -> int:
        """Bound on what the busiest device sends to others of its node."""
        source, target = self._source_device, self._device
        demands = [
            Demand(candidates=tuple(source[rank] for rank in ranks), amount=of.amount)
            for ranks, of in self._inside.items()
        ]
        demands += [
            Demand(
                candidates=tuple(target[rank] for rank in ranks),
                amount=of.amount * (len(ranks) - 1),
            )
            for ranks, of in self._entries.items()
        ]
        base = np.zeros(max(*source, *target) + 1)
        load = base.copy()
        for demand, share in zip(demands, spread(demands, base), strict=True):
            load[list(demand.candidates)] += share
        return int(np.ceil(least_busiest(demands, base, load) - 1e-6))


def _flows(rows: Int64, senders: Int64, receivers: Int64) -> Flows:
    line, begin, end, sender, sender_place, receiver, receiver_place = rows.T.copy()
    return Flows(
        line=line,
        begin=begin,
        end=end,
        sender=senders[sender],
        sender_rank=sender,
        sender_place=sender_place,
        receiver=receivers[receiver],
        receiver_rank=receiver,
        receiver_place=receiver_place,
    )


def _requests(requests: _RequestsBySet, candidates: tuple[int, ...]) -> _Requests:
    of = requests.get(candidates)
    if of is None:
        of = requests[candidates] = _Requests()
    return of


def _demands(requests: _RequestsBySet) -> list[Demand]:
    return [Demand(candidates=ranks, amount=of.amount) for ranks, of in requests.items()]


def _spread(requests: _RequestsBySet, base: Float64) -> tuple[list[Float64], Float64]:
    shares = spread(_demands(requests), base)
    load = base.copy()
    for candidates, share in zip(requests, shares, strict=True):
        load[list(candidates)] += share
    return shares, load


def _bound(requests: _RequestsBySet, load: Float64) -> int:
    return int(np.ceil(least_busiest(_demands(requests), np.zeros(len(load)), load) - 1e-6))


def _refine(first: Iterable[_Part], second: Iterable[_Part]) -> list[tuple[int, int, int, int]]:
    """Overlay two ways to cut the same line: begin, end, and who has it in each."""
    parts = []
    ahead = ((end, who) for _, end, who in second)
    end2, who2 = next(ahead)
    for begin1, end1, who1 in first:
        begin = begin1
        while begin < end1:
            if begin >= end2:
                end2, who2 = next(ahead)
            end = min(end1, end2)
            parts.append((begin, end, who1, who2))
            begin = end
    return parts
