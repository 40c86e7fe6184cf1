"""The digests of `realloc.transfer` equal the numpy definition bit by bit."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.transfer import Blocks, Messages, TransferProgram
from realloc.reallocation.digest import element_bits, tensor_digest, weigh
from realloc.transfer import summing
from realloc.transfer.communicator import Direction
from realloc.transfer.digest import PassingDigests, SentDigests
from realloc.transfer.matching import Strip, copy_matched
from realloc.transfer.parameters import Parameters
from realloc.transfer.parts import Parts
from realloc.transfer.summing import CompiledSums, DigestSums, Rectangle, Summed, TorchSums

CPU = torch.device("cpu")


def every_way() -> list[DigestSums]:
    return [CompiledSums(2), TorchSums(CPU, 2, 64), TorchSums(CPU, 2)]


@given(
    itemsize=st.sampled_from([2, 4]),
    start=st.integers(0, 40),
    rows=st.integers(1, 9),
    cols=st.sampled_from([1, 12, 1000, 1024, 2500]),
    gap=st.integers(0, 20),
    canonical_start=st.one_of(st.integers(0, 5000), st.integers(0, 2**62)),
    canonical_gap=st.integers(0, 2**20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_all_ways_to_sum_give_the_numbers_of_the_definition(
    itemsize: int, start: int, rows: int, cols: int, gap: int, canonical_start: int,
    canonical_gap: int, seed: int,
) -> None:  # fmt: skip
    """Random rectangles give the numpy reference's sums, compiled and in torch."""
    values = np.random.default_rng(seed).integers(0, 256, (start + rows * (cols + gap)) * itemsize)
    bits = values.astype(np.uint8).view(np.uint16 if itemsize == 2 else np.uint32)
    row, col = np.arange(rows)[:, None], np.arange(cols)[None, :]
    index = canonical_start + row * (cols + canonical_gap) + col
    expected = weigh(element_bits(bits[start + row * (cols + gap) + col]), index).sum()

    flat = torch.from_numpy(bits.view(np.int16 if itemsize == 2 else np.int32))
    flat = flat.view(torch.bfloat16 if itemsize == 2 else torch.float32)
    rectangle = Rectangle(
        start=start,
        rows=rows,
        cols=cols,
        row_stride=cols + gap,
        canonical_start=canonical_start,
        canonical_stride=cols + canonical_gap,
    )
    for sums in every_way():
        sums.add(1, flat, rectangle)
        assert sums.values().tolist() == [0, expected]


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.integers(1, 9),
    cols=st.sampled_from([1, 12, 1000, 1024, 2500]),
    gaps=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    starts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    tile_bytes=st.sampled_from([1, 64, 5000, 1 << 20]),
    summed=st.sampled_from(list(Summed)),
)
@settings(max_examples=80, deadline=None)
def test_a_copy_that_sums_copies_and_sums(
    dtype: torch.dtype, rows: int, cols: int, gaps: tuple[int, int], starts: tuple[int, int],
    tile_bytes: int, summed: Summed,
) -> None:  # fmt: skip
    """Random rectangles arrive, nothing beside them is touched, and the sum is that of a pass
    of its own, whatever the tiles are."""
    strips = [
        Strip(torch.randn(start + rows * (cols + gap)).to(dtype), start, rows, cols, cols + gap)
        for start, gap in zip(starts, gaps, strict=True)
    ]
    target, source = strips
    expected = target.flat.clone()
    Strip(expected, starts[0], rows, cols, cols + gaps[0]).view().copy_(source.view())
    once, twice = CompiledSums(2), CompiledSums(2)
    with mock.patch.object(summing, "COPY_TILE_BYTES", tile_bytes):
        once.add_copied(1, target, source, 77, cols + 5, summed)
    assert torch.equal(target.flat, expected)
    place = {"canonical_start": 77, "canonical_stride": cols + 5}
    twice.add(
        1,
        source.flat,
        Rectangle(start=starts[1], rows=rows, cols=cols, row_stride=cols + gaps[1], **place),
    )
    assert once.values().tolist() == twice.values().tolist()


def test_what_was_summed_once_counts_for_others_too() -> None:
    """A rectangle that goes to two peers has both digests; another one has its own."""
    flat, sums, expected = torch.randn(100), CompiledSums(3), CompiledSums(3)
    for key, start in ((0, 0), (1, 0), (2, 50), (1, 50)):
        rectangle = Rectangle(
            start=start, rows=2, cols=20, row_stride=25, canonical_start=7, canonical_stride=40
        )
        sums.add_fixed(key, flat, rectangle)
        expected.add(key, flat, rectangle)
    assert sums.values().tolist() == expected.values().tolist()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bits_count_in_the_element_type_on_the_way(stored: torch.dtype) -> None:
    """A float32 parameter that moves as bfloat16 has the digest of its bfloat16 form."""
    tensor = torch.randn(37, 20, generator=torch.Generator().manual_seed(1)).to(stored)
    program = sending_all_of(tensor, peers=(1, 3))
    parameters = Parameters(["w"], [tensor], program.sends.blocks)
    digests = SentDigests(program, parameters, torch.bfloat16)
    for _ in digests.own_steps():
        pass
    expected = tensor_digest(tensor.to(torch.bfloat16).view(torch.int16).numpy())
    assert digests.values() == {(1, 5): expected, (3, 5): expected}


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("summed", list(Summed))
def test_parts_are_copied_whatever_the_other_side_is_cut_into(
    summed: Summed, direction: Direction
) -> None:
    """A run against short and long rows, which end within its rows: all elements arrive, and the
    digest is that of the tensor."""
    tensor = torch.randn(8, 30, generator=torch.Generator().manual_seed(2))
    program = sending_all_of(tensor, peers=(1,))
    others = [
        Strip(torch.zeros(7), 0, 1, 7, 7),
        Strip(torch.zeros(60), 3, 3, 11, 20),
        Strip(torch.zeros(900), 0, 4, 50, 200),
    ]
    parts = Parts(program.sends, by_peer=True)
    if direction is Direction.RECEIVE:
        copy_matched(others, [Strip(tensor.view(-1), 0, 1, 240, 240)])
    own = tensor if direction is Direction.SEND else torch.zeros(8, 30)
    parameters = Parameters(["w"], [own], program.sends.blocks)
    digests = PassingDigests(parameters, torch.float32, 1, fixed=False)
    assert digests.add_copied((parts.whole(0),), others, direction, summed)
    found = torch.cat([other.view().reshape(-1) for other in others])
    assert torch.equal(own, tensor)
    assert torch.equal(found, tensor.view(-1))
    assert digests.values().tolist() == [tensor_digest(tensor.numpy())]


def sending_all_of(tensor: torch.Tensor, peers: tuple[int, ...]) -> TransferProgram:
    """One block, canonical tensor 5, to each peer."""

    def blocks(count: int) -> Blocks:
        rows, cols = tensor.shape
        wide = {"start": 0, "rows": rows, "cols": cols, "row_stride": cols}
        places = {**wide, "canonical_start": 0, "canonical_stride": cols}
        return Blocks(
            tensor=np.zeros(count, np.int32),
            canonical=np.full(count, 5, np.int32),
            **{name: np.full(count, value, np.int64) for name, value in places.items()},
        )

    def messages(to: tuple[int, ...]) -> Messages:
        return Messages(
            peer=np.array(to, np.int32),
            round=np.zeros(len(to), np.int32),
            first_block=np.arange(len(to) + 1),
            first_cut=np.zeros(len(to) + 1, np.int64),
            cut=np.zeros(0, np.int64),
            blocks=blocks(len(to)),
        )

    return TransferProgram(
        endpoint=0,
        source_tensors=("w",),
        destination_tensors=(),
        sends=messages(peers),
        receives=messages(()),
        num_rounds=1,
    )
