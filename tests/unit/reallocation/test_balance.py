"""Spreading demands over replicas, against maximum flow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.reallocation.balance import Demand, least_busiest, pour, spread
from tests.unit.reallocation.brute_force import least_busiest_by_flow
from tests.unit.reallocation.cases import Case, architecture, layout

DEMANDS = st.dictionaries(
    st.frozensets(st.integers(0, 7), min_size=1), st.integers(0, 10_000), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(DEMANDS)
def test_spread_is_the_best_balance(amounts):
    """Shares add up, and the busiest candidate has what maximum flow says is least."""
    demands = [
        Demand(candidates=tuple(sorted(candidates)), amount=amount)
        for candidates, amount in amounts.items()
    ]
    shares = spread(demands, np.zeros(8))
    load = np.zeros(8)
    for demand, share in zip(demands, shares, strict=True):
        assert share.min() >= 0
        assert share.sum() == pytest.approx(demand.amount)
        load[list(demand.candidates)] += share
    best = least_busiest_by_flow(amounts)
    assert load.max() <= best * 1.001 + 1
    assert best - 1.001 <= least_busiest(demands, np.zeros(8), load) + 0.001 * best <= best * 1.002


def test_load_that_is_there_already_is_avoided():
    """Water is poured where the level is low."""
    np.testing.assert_allclose(pour(6.0, np.array([0.0, 2.0, 9.0])), [4.0, 2.0, 0.0])
    (share,) = spread([Demand(candidates=(0, 1), amount=10)], np.array([6.0, 0.0]))
    np.testing.assert_allclose(share, [2.0, 8.0])


def test_the_copy_of_a_tied_embedding_serves_those_who_have_less_else_to_send():
    """Where replicas differ in what else they must send, an even split would not do."""
    model = architecture(num_layers=3, tied_embeddings=True, vocab_size=400)
    case = Case(model=model, source=layout("vllm:d1t1p2"), destination=layout("vllm:d1t1p1", 4))
    traffic = case.plan().traffic
    assert traffic.busiest_send_bound == pytest.approx(traffic.total_bytes / 2, rel=0.01)
    assert traffic.busiest_send_bytes <= 1.01 * traffic.busiest_send_bound
