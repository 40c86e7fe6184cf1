"""Traffic and balance worked out element by element, without any of the planner's ideas."""

from collections import defaultdict
from collections.abc import Iterator

import networkx as nx
import numpy as np

from realloc.core.layout import Layout
from realloc.core.transfer import Messages, TransferPlan
from tests.unit.reallocation.cases import Case

Groups = dict[tuple[frozenset[int], frozenset[int]], int]
"""Elements by the source ranks that hold them and the destination ranks that want them."""


def groups_of(case: Case) -> Groups:
    """Group all canonical elements by who has and who wants them."""
    have, want = _holders(case, case.source), _holders(case, case.destination)
    groups: Groups = defaultdict(int)
    for held, wanted in zip(have, want, strict=True):
        columns, counts = np.unique(np.concatenate([held, wanted]), axis=1, return_counts=True)
        for column, count in zip(columns.T, counts, strict=True):
            sources = frozenset(np.flatnonzero(column[: len(held)]).tolist())
            wanting = frozenset(np.flatnonzero(column[len(held) :]).tolist())
            groups[sources, wanting] += int(count)
    return groups


def _holders(case: Case, side: Layout) -> list[np.ndarray]:
    """Per canonical tensor, bool [ranks, elements]: who stores which element."""
    ranks = len(side.devices)
    held = [np.zeros((ranks, weight.size), dtype=bool) for weight in case.weights()]
    for rank, table in enumerate(case.tables(side)):
        b = table.blocks
        for i in range(len(b)):
            rows = np.arange(b.rows[i])[:, None] * b.canonical_stride[i]
            index = b.canonical_start[i] + rows + np.arange(b.cols[i])
            assert not held[b.canonical[i]][rank, index].any(), "a rank stores an element twice"
            held[b.canonical[i]][rank, index] = True
    return held


def crossing_bounds(case: Case) -> tuple[int, int]:
    """Elements that must cross devices, and nodes."""
    devices, nodes = 0, 0
    for (sources, wanting), count in groups_of(case).items():
        have = {case.have[rank] for rank in sources}
        want = {case.want[rank] for rank in wanting}
        devices += count * len({e.device for e in want} - {e.device for e in have})
        nodes += count * len({e.node for e in want} - {e.node for e in have})
    return devices, nodes


Demands = dict[frozenset[int], int]
"""Elements that one device of a set must send (or receive)."""


def network_demands(case: Case) -> tuple[Demands, Demands]:
    """Between nodes: what sets of devices must send, and receive."""
    send: Demands = defaultdict(int)
    receive: Demands = defaultdict(int)
    for have, count, missing in _missing(case):
        if missing[0].node not in {endpoint.node for endpoint in have}:
            send[frozenset(e.device for e in have)] += count
            receive[frozenset(e.device for e in missing)] += count
    return send, receive


def inside_demands(case: Case) -> Demands:
    """Inside nodes: what sets of devices must send."""
    send: Demands = defaultdict(int)
    for have, count, missing in _missing(case):
        near = frozenset(e.device for e in have if e.node == missing[0].node)
        if near:
            send[near] += count * len(missing)
        else:
            send[frozenset(e.device for e in missing)] += count * (len(missing) - 1)
    return send


def _missing(case: Case) -> Iterator[tuple[list, int, list]]:
    """For each group and node: who has it, its elements, and who lacks it there."""
    for (sources, wanting), count in groups_of(case).items():
        have = [case.have[rank] for rank in sources]
        devices = {endpoint.device for endpoint in have}
        by_node = defaultdict(list)
        for rank in wanting:
            if case.want[rank].device not in devices:
                by_node[case.want[rank].node].append(case.want[rank])
        for missing in by_node.values():
            yield have, count, missing


def least_busiest_by_flow(demands: Demands) -> int:
    """The least maximum load over all ways to spread the demands: binary search of max-flows."""
    total = sum(demands.values())
    low, high = 0, total
    while low < high:
        limit = (low + high) // 2
        graph = nx.DiGraph()
        for index, (devices, amount) in enumerate(demands.items()):
            graph.add_edge("source", ("demand", index), capacity=amount)
            for device in devices:
                graph.add_edge(("demand", index), ("device", device), capacity=amount)
                graph.add_edge(("device", device), "sink", capacity=limit)
        value = nx.maximum_flow_value(graph, "source", "sink") if total else 0
        low, high = (low, limit) if value >= total else (limit + 1, high)
    return low


def sent_by_programs(plan: TransferPlan) -> np.ndarray:
    """[endpoints, endpoints] elements that the programs really send."""
    sent = np.zeros((len(plan.endpoints),) * 2, dtype=np.int64)
    for program in plan.programs:
        sizes = program.sends.blocks.rows * program.sends.blocks.cols
        starts = program.sends.first_block
        for message, peer in enumerate(program.sends.peer):
            sent[program.endpoint, peer] += sizes[starts[message] : starts[message + 1]].sum()
    return sent


def cuts_by_pair(messages: Messages) -> dict[int, list[list[int]]]:
    """The cuts of all messages to, or from, each peer, in order."""
    found: dict[int, list[list[int]]] = {}
    for number, peer in enumerate(messages.peer.tolist()):
        first, last = messages.first_cut[number : number + 2]
        found.setdefault(peer, []).append(messages.cut[first:last].tolist())
    return found


def addresses(messages: Messages, number: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each element of a message lies, and whether that is in a block without gaps of at
    least this many elements. Addresses of two parameters are far apart."""
    blocks = messages.blocks
    address, long = [], []
    for block in range(messages.first_block[number], messages.first_block[number + 1]):
        rows, cols, stride = (
            int(of[block]) for of in (blocks.rows, blocks.cols, blocks.row_stride)
        )
        row, col = np.divmod(np.arange(rows * cols), cols)
        start = (int(blocks.tensor[block]) << 40) + int(blocks.start[block])
        address.append(start + row * stride + col)
        long.append(np.full(rows * cols, rows == 1 and cols >= least))
    return np.concatenate(address), np.concatenate(long)
