"""Parts: what of its flows one process sends and receives in each round."""

from dataclasses import dataclass

import numpy as np

from realloc.core.transfer import Int64
from realloc.reallocation.flows import Flows, Routes
from realloc.reallocation.lines import Lines
from realloc.reallocation.schedule import FORWARD_DELAY, Schedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Flows cut to what moves in one round, in the order in which they are packed."""

    flows: Flows
    round: Int64
    peer: Int64
    """[parts] endpoint on the other side."""
    forward: Int64
    """[parts] 1 where the sender passes on what it received, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EndpointParts:
    """Both sides of one process."""

    sends: Parts
    receives: Parts


def parts_of(lines: Lines, routes: Routes, schedule: Schedule, endpoint: int) -> EndpointParts:
    """The parts that touch one endpoint."""
    direct, forwards = routes.direct, routes.forwards
    passed = np.flatnonzero((forwards.sender == endpoint) | (forwards.receiver == endpoint))
    parents = np.searchsorted(schedule.pair_flow, routes.parent[passed], side="right") - 1
    own = (schedule.pair_sender == endpoint) | (schedule.pair_receiver == endpoint)
    own[parents] = True
    cuts = _cut_streams(lines, routes, schedule, np.flatnonzero(own))
    first = _cut(direct, cuts.flow, cuts)
    child, of = _children(routes.parent, cuts.flow)
    mine = (forwards.sender[child] == endpoint) | (forwards.receiver[child] == endpoint)
    child, of = child[mine], of[mine]
    second = _cut(forwards, child, cuts.take(of))
    flows = Flows.concatenate(first, second)
    rounds = np.concatenate([cuts.round, cuts.round[of] + FORWARD_DELAY])
    forward = np.repeat([0, 1], [len(first), len(second)])
    position = np.concatenate([cuts.begin, cuts.begin[of]])
    return EndpointParts(
        sends=_side(flows, rounds, forward, position, flows.sender == endpoint, "receiver"),
        receives=_side(flows, rounds, forward, position, flows.receiver == endpoint, "sender"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _StreamCuts:
    """Pieces of direct flows that move in one round."""

    flow: Int64
    begin: Int64
    """[pieces] first element, counted over all streams."""
    offset: Int64
    """[pieces] first element within the flow."""
    size: Int64
    round: Int64

    def take(self, index: Int64) -> "_StreamCuts":
        return _StreamCuts(
            flow=self.flow[index],
            begin=self.begin[index],
            offset=self.offset[index],
            size=self.size[index],
            round=self.round[index],
        )


def _cut_streams(lines: Lines, routes: Routes, schedule: Schedule, pairs: Int64) -> _StreamCuts:
    """Cut the streams of the given pairs (ascending) at rounds and at flows."""
    starts = schedule.flow_begin[schedule.pair_flow[pairs]]
    sizes = schedule.flow_begin[schedule.pair_flow[pairs + 1]] - starts
    share = np.arange(1, schedule.shares, dtype=np.int64)
    cuts = (starts[:, None] + sizes[:, None] * share // schedule.shares).reshape(-1)
    if schedule.whole_rows:
        cuts = _to_rows(lines, routes, schedule, cuts)
    flows = ranges(schedule.pair_flow[pairs], schedule.pair_flow[pairs + 1])
    begin = np.unique(np.concatenate([schedule.flow_begin[flows], cuts]))
    flow = np.searchsorted(schedule.flow_begin, begin, side="right") - 1
    end = np.minimum(np.append(begin[1:], schedule.flow_begin[-1]), schedule.flow_begin[flow + 1])
    pair = np.searchsorted(starts, begin, side="right") - 1
    passed = np.searchsorted(cuts, begin, side="right") - pair * len(share)
    return _StreamCuts(
        flow=flow,
        begin=begin,
        offset=begin - schedule.flow_begin[flow],
        size=end - begin,
        round=schedule.window[pairs][pair] * schedule.rounds_per_window + passed,
    )


def _to_rows(lines: Lines, routes: Routes, schedule: Schedule, cuts: Int64) -> Int64:
    """Move cuts down to the start of a row, or of the flow."""
    flow = np.searchsorted(schedule.flow_begin, cuts, side="right") - 1
    offset = cuts - schedule.flow_begin[flow]
    element = routes.direct.begin[flow] + offset
    back: Int64 = np.minimum(lines.into_row(routes.direct.line[flow], element), offset)
    return cuts - back


def _cut(flows: Flows, index: Int64, cuts: _StreamCuts) -> Flows:
    cut = flows.take(index)
    begin = cut.begin + cuts.offset
    return cut.with_range(begin, begin + cuts.size)


def _children(parent: Int64, flow: Int64) -> tuple[Int64, Int64]:
    """Forwards of each piece's flow: their index, and the piece."""
    first = np.searchsorted(parent, flow, side="left")
    last = np.searchsorted(parent, flow, side="right")
    return ranges(first, last), np.repeat(np.arange(len(flow)), last - first)


def ranges(first: Int64, last: Int64) -> Int64:
    """``first[0] … last[0] − 1, first[1] … last[1] − 1, …``"""
    size = last - first
    ends = np.cumsum(size)
    shift: Int64 = np.repeat(first - (ends - size), size)
    return shift + np.arange(len(shift))


def _side(
    flows: Flows, rounds: Int64, forward: Int64, position: Int64, mine: Int64, other: str
) -> Parts:
    index = np.flatnonzero(mine)
    peer = getattr(flows, other)
    order = np.lexsort((position[index], forward[index], peer[index], rounds[index]))
    index = index[order]
    return Parts(
        flows=flows.take(index), round=rounds[index], peer=peer[index], forward=forward[index]
    )
