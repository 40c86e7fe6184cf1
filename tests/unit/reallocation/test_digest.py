"""The digest: its exact definition, and what it notices."""

import numpy as np
import pytest

from realloc.reallocation.digest import (
    block_digests,
    element_bits,
    segment_factor,
    segment_weights,
    tensor_digest,
)
from realloc.reallocation.reference import execute
from tests.unit.reallocation.cases import Case, architecture, empty, filled, layout


def by_definition(bits: list[int]) -> int:
    """The digest in Python's unbounded integers."""

    def signed(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    def weight(place: int) -> int:  # MurmurHash3's fmix32
        mixed = place + 1
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        return mixed ^ mixed >> 16

    def factor(segment: int) -> int:
        mixed = signed(segment * 0x9E3779B97F4A7C15)
        mixed = signed((mixed ^ mixed >> 32) * 0xBF58476D1CE4E5B9)
        return (mixed ^ mixed >> 29) | 1

    return signed(sum(bit * weight(i % 1024) * factor(i // 1024) for i, bit in enumerate(bits)))


def test_the_digest_is_its_definition():
    """int64 arithmetic with wrap-around is what the text says, over several segments."""
    tensor = np.random.default_rng(0).standard_normal((3, 1100)).astype(np.float32)
    assert tensor_digest(tensor) == by_definition(tensor.view(np.uint32).reshape(-1).tolist())


def test_bits_are_unsigned_patterns():
    """float32 counts by its 32 bits and bfloat16 (16 bits) by its 16."""
    assert element_bits(np.array([1.0, -2.0], np.float32)).tolist() == [0x3F800000, 0xC0000000]
    half = np.array([0x3F80, 0xC000], np.uint16)
    assert element_bits(half).tolist() == [0x3F80, 0xC000]


def test_known_digests():
    """The definition is part of the wire between versions: these numbers do not change."""
    assert tensor_digest(np.arange(6, dtype=np.float32).reshape(2, 3)) == KNOWN
    assert tensor_digest(np.zeros(0, np.float32)) == 0


KNOWN = by_definition([0, 0x3F800000, 0x40000000, 0x40400000, 0x40800000, 0x40A00000])


def test_weights_differ_and_factors_are_odd():
    """What makes single changes and swaps within a segment certain to be seen."""
    weights = segment_weights()
    assert len(np.unique(weights)) == 1024
    assert weights.min() > 0
    assert (segment_factor(np.arange(10_000)) & 1 == 1).all()


def test_any_flipped_bit_is_seen():
    """Each of the 32 bits of an element, wherever it lies."""
    tensor = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    seen = {tensor_digest(tensor)}
    places = (0, 1023, 1024, 4999)
    for place in places:
        for bit in range(32):
            flipped = tensor.copy()
            flipped.view(np.uint32)[place] ^= np.uint32(1 << bit)
            seen.add(tensor_digest(flipped))
    assert len(seen) == 1 + 32 * len(places)


def _swapped(tensor, random):
    first, second = random.choice(len(tensor), 2, replace=False)
    tensor[[first, second]] = tensor[[second, first]]


def _shifted(tensor, random):
    first, shift = random.integers(0, 2000), random.integers(1, 1500)
    tensor[first + shift :] = tensor[first:-shift].copy()


def _stale(tensor, random):
    first, length = random.integers(0, 3000), random.integers(1, 1000)
    tensor[first : first + length] += np.float32(1e-6)


def _slices_swapped(tensor, random):
    first, second = random.choice(4, 2, replace=False) * 1024
    one = tensor[first : first + 1024].copy()
    tensor[first : first + 1024] = tensor[second : second + 1024]
    tensor[second : second + 1024] = one


def _signs_flipped(tensor, random):
    chosen = random.choice(len(tensor), 4, replace=False)
    tensor[chosen] = -tensor[chosen]


def _zeroed(tensor, random):
    first = random.integers(0, 4000)
    tensor[first : first + 64] = 0


@pytest.mark.parametrize(
    "damage", [_swapped, _shifted, _stale, _slices_swapped, _signs_flipped, _zeroed]
)
def test_what_goes_wrong_in_transfers_is_seen(damage):
    """A thousand random errors of each kind all change the digest; small values, as weights
    are, and half of them rounded to bfloat16, whose low bits are zero."""
    random, damages = np.random.default_rng(2), 0
    for number in range(1000):
        tensor = (0.02 * random.standard_normal(4096)).astype(np.float32)
        if number % 2:
            tensor.view(np.uint32)[:] &= 0xFFFF0000
        damaged = tensor.copy()
        damage(damaged, random)
        if damaged.tobytes() != tensor.tobytes():  # two equal elements may have been swapped
            assert tensor_digest(damaged) != tensor_digest(tensor)
            damages += 1
    assert damages > 900


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
