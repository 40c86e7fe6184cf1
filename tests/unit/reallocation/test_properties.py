"""Properties of plans for random models, layouts, devices and limits."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from realloc.core.errors import InvalidInput
from realloc.core.layout import LayoutKind
from realloc.reallocation.families import KNOWN_FAMILIES
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
from tests.unit.reallocation.cases import Case, architecture, in_one_memory, layout, run
from tests.unit.reallocation.random_cases import CASES, features, random_case

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def test_random_cases_are_of_every_kind():
    """What plans must be right for comes up among some hundred random cases, each of it often."""
    counts = Counter(feature for seed in range(400) for feature in features(random_case(seed)))
    kinds = [kind.value for kind in LayoutKind]
    wanted = {
        *KNOWN_FAMILIES,
        *(f"{mesh} meshes" for mesh in ("equal", "overlapping", "disjoint")),
        *(f"from {a} to {b}" for a in kinds for b in kinds),
        "tensor degrees of which none divides the other",
        "from interleaved stages to vllm",
        *(
            f"{end} {feature}"
            for end in ("from", "to")
            for feature in (
                "replicated KV heads",
                "megatron stages",
                "vllm stages",
                "interleaved stages",
                "tied embeddings across stages",
                "megatron expert and tensor ranks",
                "vllm expert and tensor ranks",
                "a vocabulary padded by megatron",
                "a vocabulary padded by vllm",
                "context ranks",
            )
        ),
    }
    assert {feature for feature in wanted if counts[feature] < 3} == set()


@SETTINGS
@given(CASES)
def test_weights_arrive_within_the_limits(case):
    """Bit-identical weights, each element written once, every round within its limits."""
    try:
        case.plan()
    except InvalidInput as error:
        event(str(error).split(";")[0][:30])
        return
    _check_limits(case, run(case))


@pytest.mark.parametrize(
    ("source", "destination", "first_device"),
    [
        ("megatron:d1t2p2", "vllm:d2t2p1", 4),
        ("fsdp:d5t1p1", "megatron:d2t2p1", 4),
        ("vllm:d1t2p2", "megatron:d2t2p1", 3),
    ],
)
def test_rounds_in_which_much_is_passed_on_are_within_the_limits(source, destination, first_device):
    """What is passed on is no equal share of each round; the fullest round fits, too."""
    case = Case(
        model=architecture(),
        source=layout(source),
        destination=layout(destination, first_device),
        limits=TransferLimits(staging_bytes=2048, max_operations=64),
    )
    plan = run(case)
    assert len(plan.programs.routes.forwards)
    _check_limits(case, plan)


@SETTINGS
@given(CASES, st.integers(0, 40))
def test_nothing_is_read_after_it_was_overwritten(case, ahead):
    """Where both sides of a device share one memory, shifted by any number of elements, plans
    for shared buffers have no hazard: the reference refuses such, and weights are right."""
    case = replace(
        case,
        roles=("a", "a"),
        limits=TransferLimits(staging_bytes=8 << 20, max_operations=64, buffers=Buffers.SHARED),
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


@settings(SETTINGS, max_examples=80)
@given(CASES)
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
@given(CASES)
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
@given(CASES)
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
