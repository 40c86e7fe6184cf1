"""The digest: its exact definition, and what it notices."""

import numpy as np

from realloc.reallocation.digest import block_digests, element_bits, mix, tensor_digest
from realloc.reallocation.reference import execute
from tests.unit.reallocation.cases import Case, architecture, empty, filled, layout


def by_definition(bits: int, index: int) -> int:
    """`mix` in Python's unbounded integers."""

    def signed(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    mixed = signed(bits ^ signed(index * -7046029254386353131))
    mixed = signed((mixed ^ (mixed >> 32)) * -4658895280553007687)
    return signed(mixed ^ (mixed >> 29))


def test_mix_is_its_definition():
    """int64 arithmetic with wrap-around is what the text says."""
    random = np.random.default_rng(0)
    bits = random.integers(-(2**31), 2**31, 200)
    index = random.integers(0, 2**40, 200)
    expected = [by_definition(int(b), int(i)) for b, i in zip(bits, index, strict=True)]
    assert mix(bits, index).tolist() == expected


def test_bits_are_sign_extended_patterns():
    """float32 counts by its 32 bits and bfloat16 (16 bits) by its 16, sign copied."""
    assert element_bits(np.array([1.0, -2.0], np.float32)).tolist() == [0x3F800000, -0x40000000]
    half = np.array([0x3F80, 0xC000], np.uint16)
    assert element_bits(half).tolist() == [0x3F80, 0xC000 - 0x10000]


def test_known_digests():
    """The definition is part of the wire between versions: these numbers do not change."""
    assert tensor_digest(np.arange(6, dtype=np.float32).reshape(2, 3)) == KNOWN
    assert tensor_digest(np.zeros(0, np.float32)) == 0


KNOWN = sum(
    by_definition(bits, index)
    for index, bits in enumerate([0, 0x3F800000, 0x40000000, 0x40400000, 0x40800000, 0x40A00000])
)
KNOWN = (KNOWN + 2**63) % 2**64 - 2**63


def test_swapped_and_changed_elements_are_seen():
    """Any swap of two elements and any flipped bit changes the digest."""
    tensor = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    digest = tensor_digest(tensor)
    seen = {digest}
    for first in range(0, 64, 7):
        for second in range(first + 1, 64, 5):
            swapped = tensor.reshape(-1).copy()
            swapped[[first, second]] = swapped[[second, first]]
            seen.add(tensor_digest(swapped))
    for bit in range(32):
        flipped = tensor.copy()
        flipped.view(np.int32)[3, 3] ^= np.int32(np.uint32(1 << bit).view(np.int32))
        seen.add(tensor_digest(flipped))
    swaps = sum(len(range(first + 1, 64, 5)) for first in range(0, 64, 7))
    assert len(seen) == 1 + swaps + 32


def test_both_ends_of_a_plan_agree():
    """What all senders sum for a receiver is what the receiver finds in its parameters."""
    case = Case(
        model=architecture(),
        source=layout("megatron:d2t2p2"),
        destination=layout("vllm:d2t2p1", 8),
        node_size=8,
    )
    plan, weights = case.plan(), case.weights()
    sources = {
        endpoint.name: filled(table, weights)
        for endpoint, table in zip(case.have, case.tables(case.source), strict=True)
    }
    targets = {
        endpoint.name: empty(table)
        for endpoint, table in zip(case.want, case.tables(case.destination), strict=True)
    }
    execute(plan, sources, targets)
    num_canonical = len(plan.canonical_tensors)
    sent = np.zeros((len(plan.endpoints), num_canonical), dtype=np.int64)
    for program in plan.programs:
        name = plan.endpoints[program.endpoint].name
        flats = [
            *(sources[name][tensor].reshape(-1) for tensor in program.source_tensors),
            *(targets[name][tensor].reshape(-1) for tensor in program.destination_tensors),
        ]
        for message, peer in enumerate(program.sends.peer):
            first, last = program.sends.first_block[message : message + 2]
            sent[peer] += block_digests(
                flats, program.sends.blocks.take(slice(first, last)), num_canonical
            )
    for program in plan.programs:
        name = plan.endpoints[program.endpoint].name
        if name in targets:
            flats = [targets[name][tensor].reshape(-1) for tensor in program.destination_tensors]
            found = block_digests(flats, program.receives.blocks, num_canonical)
            np.testing.assert_array_equal(found, sent[program.endpoint])
    assert any(len(program.sends.blocks) for program in plan.programs[8:])
