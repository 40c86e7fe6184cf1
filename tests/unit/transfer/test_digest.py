"""The digests of `realloc.transfer` equal the numpy definition bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.transfer import Blocks, Messages, TransferProgram
from realloc.reallocation.digest import element_bits, tensor_digest, weigh
from realloc.transfer.digest import SentDigests
from realloc.transfer.parameters import Parameters
from realloc.transfer.summing import CompiledSums, DigestSums, Rectangle, TorchSums

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
