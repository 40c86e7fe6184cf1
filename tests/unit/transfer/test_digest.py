"""The digests of `realloc.transfer` equal the numpy definition bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.transfer import Blocks
from realloc.reallocation.digest import block_digests, tensor_digest
from realloc.transfer.digest import BlockDigests, rectangles
from realloc.transfer.mixing import CompiledMixer, Mixer, Rectangle, TorchMixer
from realloc.transfer.parameters import Parameters


def make_blocks(*rows: tuple[int, ...]) -> Blocks:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 8).T
    return Blocks(
        tensor=columns[0].astype(np.int32),
        start=columns[1],
        rows=columns[2],
        cols=columns[3],
        row_stride=columns[4],
        canonical=columns[5].astype(np.int32),
        canonical_start=columns[6],
        canonical_stride=columns[7],
    )


def mixers(num_keys: int) -> list[Mixer]:
    return [CompiledMixer(num_keys), TorchMixer(torch.device("cpu"), num_keys, 64)]


block = st.tuples(
    st.integers(0, 1),
    st.integers(0, 40),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(12, 20),
    st.integers(0, 2),
    st.integers(0, 2**62),
    st.integers(1, 2**40),
)


@given(blocks=st.lists(block, min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_both_mixers_give_the_numbers_of_the_definition(
    blocks: list[tuple[int, ...]], seed: int
) -> None:
    """Random blocks, tiled, give the numpy reference's sums in torch and compiled."""
    values = np.random.default_rng(seed).integers(-(2**31), 2**31, (2, 300), dtype=np.int64)
    flats = list(values.astype(np.int32).view(np.float32))
    expected = block_digests(flats, make_blocks(*blocks), 3)
    for mixer in mixers(3):
        for number, spec in enumerate(blocks):
            flat = torch.from_numpy(flats[spec[0]])
            for rectangle in rectangles(make_blocks(*blocks), number, 64):
                mixer.add(spec[5], flat, rectangle)
        assert mixer.values().tolist() == expected.tolist()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bits_count_in_the_element_type_on_the_way(stored: torch.dtype) -> None:
    """A float32 parameter that moves as bfloat16 has the digest of its bfloat16 form."""
    tensor = torch.randn(37, 20, generator=torch.Generator().manual_seed(1)).to(stored)
    blocks = make_blocks((0, 0, 37, 20, 20, 0, 0, 20))
    digests = BlockDigests(Parameters(["w"], [tensor], blocks), 1, torch.bfloat16)
    for _ in digests.add(blocks, np.zeros(1, np.int64), first_number=0):
        pass
    rounded = tensor.to(torch.bfloat16).view(torch.int16).numpy()
    assert digests.values().tolist() == [tensor_digest(rounded)]


def test_a_swapped_pair_of_elements_changes_the_digest() -> None:
    """The digest depends on positions, not only on what is there."""
    flat = torch.arange(100, dtype=torch.float32)
    swapped = flat.clone()
    swapped[3], swapped[70] = flat[70], flat[3]
    whole = Rectangle(
        start=0, rows=1, cols=100, row_stride=100, canonical_start=0, canonical_stride=100
    )
    for mixer in mixers(2):
        if mixer.tile_elements >= 100:
            mixer.add(0, flat, whole)
            mixer.add(1, swapped, whole)
            assert mixer.values()[0] != mixer.values()[1]
