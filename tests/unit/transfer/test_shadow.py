"""Shadow parameters: staged weights are invisible until the commit."""

import pytest
import torch

from realloc.core.errors import Conflict, NotFound
from realloc.core.transfer import TransferProgram
from realloc.transfer.shadow import ShadowParameters
from tests.support.transfer_programs import Holding, make_programs

SHAPES = [(4, 6), (2, 6)]


def program(names: tuple[str, str] = ("a", "b")) -> TransferProgram:
    """Writes all of the first parameter, and the first 12 elements of the second."""
    holdings = [
        Holding(endpoint=0, parameter=name, canonical=c, rows=(0, shape[0]), cols=(0, 6), width=6)
        for c, (name, shape) in enumerate(zip(names, SHAPES, strict=True))
    ]
    return make_programs(SHAPES, holdings, holdings, 1)[0]


def live_parameters() -> dict[str, torch.nn.Parameter]:
    return {
        "a": torch.nn.Parameter(torch.zeros(4, 6)),
        "b": torch.nn.Parameter(torch.arange(18.0)),
    }


def test_live_parameters_change_only_at_the_commit_and_in_place() -> None:
    """Until the commit nothing is seen; afterwards the same memory holds the new weights."""
    live = live_parameters()
    addresses = [parameter.data_ptr() for parameter in live.values()]
    shadow = ShadowParameters(live)
    for value in (1.0, 2.0):
        before = live["a"].detach().clone()
        staged = shadow.stage(program())
        staged["a"].fill_(value)
        assert torch.equal(live["a"], before)
        shadow.commit()
        assert bool((live["a"] == value).all())
    assert [parameter.data_ptr() for parameter in live.values()] == addresses


def test_an_abort_leaves_the_live_parameters_and_the_next_stage_starts_anew() -> None:
    """Half-written weights are forgotten, padding that no program writes keeps its value."""
    live = live_parameters()
    shadow = ShadowParameters(live)
    shadow.stage(program())["b"].fill_(-1.0)
    shadow.abort()
    staged = shadow.stage(program())
    staged["a"].fill_(3.0)
    staged["b"][:12] = 4.0
    shadow.commit()
    assert live["b"].tolist() == [4.0] * 12 + [12.0, 13.0, 14.0, 15.0, 16.0, 17.0]


def test_memory_is_allocated_when_first_staged_reused_and_released() -> None:
    """No memory before the first stage, the same memory at the second, none after release."""
    shadow = ShadowParameters(live_parameters())
    assert shadow.allocated_bytes == 0
    first = shadow.stage(program())["a"].data_ptr()
    shadow.commit()
    assert shadow.stage(program())["a"].data_ptr() == first
    assert shadow.allocated_bytes == 4 * (24 + 18)
    shadow.release()
    assert shadow.allocated_bytes == 0
    shadow.commit()


def test_staging_twice_and_unknown_parameters_are_refused() -> None:
    """A second stage must wait for commit or abort; a missing parameter is named."""
    shadow = ShadowParameters(live_parameters())
    shadow.stage(program())
    with pytest.raises(Conflict):
        shadow.stage(program())
    shadow.abort()
    with pytest.raises(NotFound, match="missing"):
        shadow.stage(program(("a", "missing")))
