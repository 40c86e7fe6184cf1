"""Spreading demands over replicas so that the busiest one has as little as possible.

A demand may be split over its candidates at will. Minimising the sum of squared loads under
these constraints also minimises the largest load (a balanced flow is least in every such
sense), and it is convex, so going over the demands one at a time and pouring each like water
over the loads of the others converges to it.

How good the result is follows from the loads alone. For any set T of candidates, what only T
may serve must be served by T, so its average load bounds the largest one from below; the
sets worth trying are the most loaded candidates (`least_busiest`). At the optimum this bound
is met, which is the duality of maximum flow and minimum cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_SWEEPS = 200
_TOLERANCE = 1e-4
"""Relative gap between the busiest candidate and its bound at which spreading stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """An amount that any of the candidates may serve in part."""

    candidates: tuple[int, ...]
    amount: int


def spread(demands: Sequence[Demand], base: Float64) -> list[Float64]:
    """Shares of each demand's candidates.

    Args:
        base: [num_candidates] load that each candidate carries already; not changed.

    Returns:
        Per demand, float64 shares in the order of its candidates; they sum to its amount.
    """
    shares = [np.full(len(d.candidates), d.amount / len(d.candidates)) for d in demands]
    members = [np.array(d.candidates, dtype=np.int64) for d in demands]
    load = base.astype(np.float64)
    for member, share in zip(members, shares, strict=True):
        load[member] += share
    shared = [k for k, member in enumerate(members) if len(member) > 1 and demands[k].amount]
    for _ in range(_SWEEPS if shared else 0):
        if load.max() <= least_busiest(demands, base, load) * (1 + _TOLERANCE):
            break
        for k in shared:
            others = load[members[k]] - shares[k]
            shares[k] = pour(demands[k].amount, others)
            load[members[k]] = others + shares[k]
    return shares


def pour(amount: float, levels: Float64) -> Float64:
    """How much reaches each vessel when water is poured over vessels filled to ``levels``."""
    order = np.sort(levels)
    depth = np.arange(1, len(order) + 1) * order - np.cumsum(order)
    filled = int(np.searchsorted(depth, amount, side="right"))
    surface = (amount + order[:filled].sum()) / filled
    poured: Float64 = np.maximum(surface - levels, 0.0)
    return poured


def least_busiest(demands: Sequence[Demand], base: Float64, load: Float64) -> float:
    """A lower bound on the largest load of any way to spread the demands.

    Args:
        load: loads of some way to spread them, which tells the candidate sets worth trying.
    """
    if not len(load):
        return 0.0
    order = np.argsort(-load, kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    forced = base[order].astype(np.float64)
    for demand in demands:
        forced[position[list(demand.candidates)].max()] += demand.amount
    averages = np.cumsum(forced) / np.arange(1, len(order) + 1)
    return float(averages.max())
