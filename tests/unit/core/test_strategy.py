"""Strategies: their text form and the order of their ranks."""

import itertools

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.strategy import Coordinate, ParallelStrategy


@pytest.mark.parametrize("text", ["d1t1p1", "d2t4p1c2", "d8t1p2v3e4", "d2t1p1c4v2e2", "d16t8p4c2"])
def test_the_text_form_is_read_back(text: str) -> None:
    """What is printed parses to the same strategy."""
    assert str(ParallelStrategy.parse(text)) == text


@pytest.mark.parametrize("text", ["d2t4", "d0t1p1", "d1t1p1v2c2", "d1t1p1c0", "D1t1p1", "d1t1p1 "])
def test_other_texts_are_refused(text: str) -> None:
    """Missing axes, zeros and another order of axes are no strategies."""
    with pytest.raises(InvalidInput, match="d2t4p1"):
        ParallelStrategy.parse(text)


def test_ranks_count_tensor_context_data_pipeline() -> None:
    """Megatron's order, by enumeration: the last loop is the fastest axis."""
    strategy = ParallelStrategy.parse("d3t2p2c2")
    axes = itertools.product(range(2), range(3), range(2), range(2))
    for rank, (pipeline, data, context, tensor) in enumerate(axes):
        place = Coordinate(data=data, tensor=tensor, pipeline=pipeline, context=context)
        assert strategy.coordinate(rank) == place
        assert strategy.rank(data=data, tensor=tensor, pipeline=pipeline, context=context) == rank
    assert strategy.num_ranks == 24
