"""Properties of plans for random models, layouts, devices and limits."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import KNOWN_FAMILIES
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.limits import Buffers, TransferLimits
from tests.unit.reallocation.brute_force import (
    addresses,
    crossing_bounds,
    cuts_by_pair,
    inside_demands,
    least_busiest_by_flow,
    network_demands,
    sent_by_programs,
)
from tests.unit.reallocation.cases import Case, architecture, in_one_memory, run

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def models(draw):
    """A model of any family with sizes that few degrees divide."""
    groups = draw(st.sampled_from([1, 2, 3, 4, 6]))
    family = draw(st.sampled_from(sorted(KNOWN_FAMILIES)))
    model = architecture(
        family,
        num_layers=draw(st.integers(1, 4)),
        hidden_size=draw(st.integers(1, 20)),
        intermediate_size=draw(st.sampled_from([6, 12, 20, 24])),
        num_attention_heads=groups * draw(st.integers(1, 4)),
        num_key_value_heads=groups,
        head_dim=draw(st.integers(1, 4)),
        vocab_size=draw(st.integers(1, 150)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )
    return model.with_head(draw(st.sampled_from(list(Head))))


@st.composite
def layouts(draw, model):
    """A layout that the engine accepts for this model, on any devices."""
    kind = draw(st.sampled_from(list(LayoutKind)))
    replicas_only = kind in (LayoutKind.HUGGINGFACE, LayoutKind.FSDP)
    degree = st.integers(1, 4)
    strategy = ParallelStrategy(
        data=draw(degree),
        tensor=1 if replicas_only else draw(degree),
        pipeline=1 if replicas_only else draw(degree),
        virtual_pipeline=draw(st.integers(1, 2)) if kind is LayoutKind.MEGATRON else 1,
        expert=1 if replicas_only else draw(st.integers(1, 2)),
        context=draw(st.integers(1, 2)) if kind is LayoutKind.MEGATRON else 1,
    )
    devices = draw(st.permutations(range(20)))[: strategy.num_ranks]
    assume(strategy.num_ranks <= 16)
    found = Layout(kind=kind, strategy=strategy, devices=tuple(devices))
    try:
        for rank in range(strategy.num_ranks):
            local_parameters(model, found, rank)
    except InvalidInput:
        assume(False)
    return found


@st.composite
def cases(draw):
    """A reallocation within tight limits."""
    model = draw(models())
    return Case(
        model=model,
        source=draw(layouts(model)),
        destination=draw(layouts(model)),
        roles=draw(st.sampled_from([("a", "b"), ("a", "a")])),
        node_size=draw(st.sampled_from([1, 3, 8, 32])),
        limits=TransferLimits(
            staging_bytes=draw(st.sampled_from([1 << 10, 5000, 1 << 20])),
            max_operations=draw(st.sampled_from([24, 64])),
            least_run_bytes=draw(st.sampled_from([1, 40, 4 << 20])),
        ),
    )


@SETTINGS
@given(cases())
def test_weights_arrive_within_the_limits(case):
    """Bit-identical weights, each element written once, every round within its limits."""
    try:
        case.plan()
    except InvalidInput as error:
        event(str(error).split(";")[0][:30])
        return
    _check_limits(case, run(case))


@SETTINGS
@given(cases(), st.integers(0, 40))
def test_nothing_is_read_after_it_was_overwritten(case, ahead):
    """Where both sides of a device share one memory, shifted by any number of elements, plans
    for shared buffers have no hazard: the reference refuses such, and weights are right."""
    case = replace(
        case,
        roles=("a", "a"),
        limits=TransferLimits(staging_bytes=1 << 20, max_operations=64, buffers=Buffers.SHARED),
    )
    run(case, lambda of: in_one_memory(of, ahead))


def _check_limits(case, plan):
    for program in plan.programs:
        size = np.zeros(program.num_rounds, dtype=np.int64)
        operations = np.zeros_like(size)
        for messages in (program.sends, program.receives):
            elements = np.zeros_like(size)
            blocks = messages.blocks.rows * messages.blocks.cols
            starts = messages.first_block
            assert (np.diff(messages.round) >= 0).all()
            for m, (peer, number) in enumerate(zip(messages.peer, messages.round, strict=True)):
                if peer != program.endpoint:
                    elements[number] += blocks[starts[m] : starts[m + 1]].sum()
                    operations[number] += 1
            assert (elements * 4 <= case.limits.staging_bytes).all()
        assert (operations <= case.limits.max_operations).all()


@settings(SETTINGS, max_examples=200)
@given(cases())
def test_both_sides_cut_a_message_alike_around_long_runs(case):
    """Sender and receiver have the same cuts; between two of them, what is part of a long run on
    one side is in one piece of memory there."""
    try:
        plan = case.plan()
    except InvalidInput:
        return
    least = -(-case.limits.least_run_bytes // 4)
    programs = list(plan.programs)
    for program in programs:
        received = cuts_by_pair(program.receives)
        for peer, of_messages in received.items():
            sent = cuts_by_pair(programs[peer].sends)[program.endpoint]
            assert sent == of_messages
        for messages in (program.sends, program.receives):
            for number in range(len(messages)):
                _check_long_runs(messages, number, least)


def _check_long_runs(messages, number, least):
    address, in_long_run = addresses(messages, number, least)
    cuts = messages.cut[messages.first_cut[number] : messages.first_cut[number + 1]]
    for segment in np.split(np.arange(len(address)), cuts):
        if in_long_run[segment].any():
            assert (np.diff(address[segment]) == 1).all()


@SETTINGS
@given(cases())
def test_traffic_is_what_the_programs_send_and_meets_its_bounds(case):
    """The figures of a plan are its programs' bytes, and equal the bounds found by elements."""
    try:
        plan = case.plan()
    except InvalidInput:
        return
    traffic, sent = plan.traffic, sent_by_programs(plan)
    device = np.array([endpoint.device for endpoint in plan.endpoints])
    node = np.array([endpoint.node for endpoint in plan.endpoints])
    devices, nodes = crossing_bounds(case)
    away = device[:, None] != device[None, :]
    far = node[:, None] != node[None, :]
    assert traffic.total_bytes == sent.sum() * 4
    assert traffic.cross_process_bytes == (sent.sum() - np.trace(sent)) * 4
    assert traffic.cross_device_bytes == traffic.cross_device_bound == devices * 4
    assert traffic.cross_device_bytes == sent[away].sum() * 4
    assert traffic.local_bytes == sent[~away].sum() * 4
    assert traffic.cross_node_bytes == traffic.cross_node_bound == nodes * 4
    assert traffic.cross_node_bytes == sent[far].sum() * 4


@SETTINGS
@given(cases())
def test_busiest_link_is_within_5_percent_of_the_best_balance(case):
    """No spread over replicas has a busiest link with clearly less: checked by maximum flow."""
    try:
        traffic = case.plan().traffic
    except InvalidInput:
        return
    send, receive = network_demands(case)
    inside = least_busiest_by_flow(inside_demands(case)) * 4
    if traffic.cross_node_bytes:
        best_send = least_busiest_by_flow(send) * 4
        best_receive = least_busiest_by_flow(receive) * 4
        assert traffic.busiest_receive_bytes <= 1.05 * best_receive + 16
        assert traffic.busiest_receive_bound <= best_receive
    else:
        best_send = inside
        assert traffic.busiest_receive_bytes == traffic.busiest_receive_bound
    assert traffic.busiest_send_bytes <= 1.05 * best_send + 16
    assert traffic.busiest_send_bound <= best_send
    assert traffic.busiest_send_bound >= 0.99 * best_send - 16
    assert 0.99 * inside - 16 <= traffic.inside_send_bound <= inside
