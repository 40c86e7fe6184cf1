"""Digests that a GPU sums equal the numpy definition bit by bit."""

import numpy as np
import pytest
import torch

from realloc.reallocation.digest import element_bits, weigh
from realloc.transfer.summing import DigestSums, Rectangle, TorchSums, sums_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
NUM_KEYS = 7


def rectangles(random: np.random.Generator, size: int) -> list[Rectangle]:
    """Runs and rows, narrow and wide, aligned or not, more of them than one launch takes."""
    found = []
    for number in range(600):
        cols = int(random.choice([1, 7, 64, 200, 1024, 1500, 4096]))
        rows = int(random.choice([1, 3, 40]))
        gap = int(random.choice([0, 8, 13]))
        start = int(random.integers(0, size - rows * (cols + gap)))
        found.append(
            Rectangle(
                start=start - start % 8 if number % 2 else start,
                rows=rows,
                cols=cols,
                row_stride=cols + gap,
                canonical_start=int(random.choice([0, 5 * 1024, random.integers(0, 2**40)])),
                canonical_stride=cols + int(random.choice([0, 16, 999])),
            )
        )
    return found


def expected(flat: np.ndarray, rectangle: Rectangle) -> int:
    row, col = np.arange(rectangle.rows)[:, None], np.arange(rectangle.cols)[None, :]
    bits = element_bits(flat[rectangle.start + row * rectangle.row_stride + col])
    index = rectangle.canonical_start + row * rectangle.canonical_stride + col
    return int(weigh(bits, index).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["fastest", "torch"])
def test_sums_on_a_gpu_are_those_of_the_definition(dtype: torch.dtype, way: str) -> None:
    """600 rectangles of seven tensors, many to a launch, equal the numpy reference."""
    random = np.random.default_rng(0)
    integer = np.int32 if dtype == torch.float32 else np.int16
    limits = np.iinfo(integer)
    flat = random.integers(limits.min, limits.max, 1 << 19, dtype=integer, endpoint=True)
    device = torch.device("cuda", 0)
    on_gpu = torch.from_numpy(flat).view(dtype).to(device)
    sums: DigestSums = sums_on(device, NUM_KEYS)
    if way == "torch":
        sums = TorchSums(device, NUM_KEYS)
    totals = np.zeros(NUM_KEYS, dtype=np.int64)
    for number, rectangle in enumerate(rectangles(random, len(flat))):
        sums.add(number % NUM_KEYS, on_gpu, rectangle)
        totals[number % NUM_KEYS : number % NUM_KEYS + 1] += expected(flat, rectangle)
    assert sums.values().tolist() == totals.tolist()
