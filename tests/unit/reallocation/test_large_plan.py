"""A plan of real size: a 70B model between 128 devices, too large to execute here."""

from collections import Counter

import numpy as np

from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.limits import TransferLimits
from tests.unit.reallocation.cases import Case, architecture, layout

LLAMA_70B = architecture(
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
)
CASE = Case(
    model=LLAMA_70B,
    source=layout("megatron:d2t8p8v2"),
    destination=layout("vllm:d32t4p1"),
    node_size=8,
    dtype="bfloat16",
)


def sizes(messages):
    """Elements of each message."""
    ends = np.concatenate([[0], np.cumsum(messages.blocks.rows * messages.blocks.cols)])
    return np.diff(ends[messages.first_block])


def test_both_ends_of_every_message_agree_and_limits_hold():
    """What a process sends in a round is what its peer expects, and fits the staging."""
    plan = CASE.plan()
    assert len(plan.programs.routes.forwards)
    sent, expected = Counter(), Counter()
    limits = TransferLimits()
    for program in plan.programs:
        for messages, counter, ahead in (
            (program.sends, sent, True),
            (program.receives, expected, False),
        ):
            size = sizes(messages)
            total = np.bincount(messages.round, weights=size, minlength=1)
            assert total.max() * 2 <= limits.forward_bytes
            for peer, number, elements in zip(messages.peer, messages.round, size, strict=True):
                pair = (program.endpoint, int(peer)) if ahead else (int(peer), program.endpoint)
                counter[*pair, int(number)] += int(elements)
    assert sent == expected
    assert sum(sent.values()) * 2 == plan.traffic.total_bytes


def test_every_element_of_a_rank_is_written_once():
    """The blocks that a rank receives cover its parameters exactly, pads apart."""
    plan = CASE.plan()
    program = plan.programs[len(plan.programs) - 1]
    table = local_parameters(LLAMA_70B, CASE.destination, 127)
    blocks = program.receives.blocks
    written = np.zeros(len(table.parameters), dtype=np.int64)
    np.add.at(written, blocks.tensor, blocks.rows * blocks.cols)
    expected = np.zeros_like(written)
    np.add.at(expected, table.blocks.tensor, table.blocks.rows * table.blocks.cols)
    np.testing.assert_array_equal(written, expected)
    for tensor in (0, 1, 2, 5, 8, len(table.parameters) - 1):
        parameter = table.parameters[tensor]
        count = np.zeros(parameter.num_elements, dtype=np.int8)
        for block in np.flatnonzero(blocks.tensor == tensor):
            rows = np.arange(blocks.rows[block])[:, None] * blocks.row_stride[block]
            at = blocks.start[block] + rows + np.arange(blocks.cols[block])
            count.reshape(-1)[at] += 1
        assert count.max() == 1
        assert count.sum() == expected[tensor]
