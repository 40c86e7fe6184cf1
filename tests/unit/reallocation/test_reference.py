"""The oracle notices plans that are wrong."""

from dataclasses import replace

import numpy as np
import pytest

from realloc.reallocation.limits import TransferLimits
from realloc.reallocation.reference import HazardError, execute
from tests.unit.reallocation.cases import Case, architecture, empty, filled, layout


@pytest.fixture
def case():
    """Two nodes, so that parts are passed on inside the second."""
    return Case(
        model=architecture(),
        source=layout("megatron:d1t2p1"),
        destination=layout("vllm:d2t1p1", 4),
        limits=TransferLimits(staging_bytes=20_000),
    )


def run_changed(case, change):
    """Execute the plan with one program changed."""
    plan = case.plan()
    programs = [change(program) for program in plan.programs]
    weights = case.weights()
    execute(
        replace(plan, programs=programs),
        {
            endpoint.name: filled(table, weights)
            for endpoint, table in zip(case.have, case.tables(case.source), strict=True)
        },
        {
            endpoint.name: empty(table)
            for endpoint, table in zip(case.want, case.tables(case.destination), strict=True)
        },
    )


def only(endpoint, change):
    """Change one endpoint's program."""
    return lambda program: change(program) if program.endpoint == endpoint else program


def test_the_plan_itself_is_right(case):
    """Without a change nothing is noticed, in more than one round and with parts passed on."""
    run_changed(case, lambda program: program)
    programs = list(case.plan().programs)
    assert programs[0].num_rounds > 3
    assert any(len(program.source_tensors) == 0 and len(program.sends) for program in programs)


def test_passing_on_too_early_is_noticed(case):
    """A part is not passed on in the round after it came in, let alone before."""

    def hurry(program):
        return replace(program, sends=replace(program.sends, round=program.sends.round - 1))

    def expect(program):
        rounds = program.receives.round - (program.receives.peer >= 2)
        return replace(program, receives=replace(program.receives, round=rounds))

    with pytest.raises(HazardError, match="two rounds old"):
        run_changed(
            case,
            lambda program: expect(hurry(program) if program.endpoint >= 2 else program),
        )


def test_writing_twice_is_noticed(case):
    """Two blocks that write one element are a mistake."""

    def shift(program):
        start = program.receives.blocks.start.copy()
        start[1] = start[0]
        tensor = program.receives.blocks.tensor.copy()
        tensor[1] = tensor[0]
        blocks = replace(program.receives.blocks, start=start, tensor=tensor)
        return replace(program, receives=replace(program.receives, blocks=blocks))

    with pytest.raises(HazardError, match="twice"):
        run_changed(case, only(2, shift))


def test_a_message_without_receiver_is_noticed(case):
    """What is sent must be received in the same round."""

    def deaf(program):
        return replace(
            program,
            receives=replace(program.receives, round=program.receives.round + 1),
            num_rounds=program.num_rounds + 1,
        )

    with pytest.raises(HazardError, match=r"nobody receives|sends nothing"):
        run_changed(case, only(2, deaf))


def test_reading_what_was_overwritten_is_noticed():
    """With one memory for both sides and several rounds the second round reads new weights."""
    case = Case(
        model=architecture(),
        source=layout("huggingface:d1t1p1"),
        destination=layout("vllm:d1t1p1"),
        roles=("both", "both"),
        limits=TransferLimits(staging_bytes=20_000),
    )
    other = Case(
        model=architecture(),
        source=layout("megatron:d1t2p1"),
        destination=layout("vllm:d2t1p1"),
        roles=("both", "both"),
        limits=TransferLimits(staging_bytes=20_000),
    )
    for of, hazard in ((case, False), (other, True)):
        memory = [np.full(200_000, np.nan, dtype=np.float32) for _ in of.want]
        plan = of.plan()
        sources, targets = (
            {
                endpoint.name: _views(memory[rank], table)
                for rank, (endpoint, table) in enumerate(zip(ends, of.tables(side), strict=True))
            }
            for ends, side in ((of.have, of.source), (of.want, of.destination))
        )
        if hazard:
            with pytest.raises(HazardError, match="after it was overwritten"):
                execute(plan, sources, targets)
        else:
            execute(plan, sources, targets)


def _views(memory, table):
    arrays, at = {}, 0
    for parameter in table.parameters:
        arrays[parameter.name] = memory[at : at + parameter.num_elements].reshape(parameter.shape)
        at += parameter.num_elements
    return arrays
