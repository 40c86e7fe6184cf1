import torch
from hypothesis import given
from hypothesis import strategies as st

from realloc.algorithms.padding import pad_rows, row_mask, unpad_rows


@given(st.lists(st.integers(0, 5), max_size=8))
def test_padding_puts_each_row_where_a_loop_would(lengths):
    """Row r of the matrix begins with row r's values; zeros follow; unpadding restores them."""
    values = torch.arange(1, sum(lengths) + 1, dtype=torch.float32)
    mask = row_mask(torch.tensor(lengths, dtype=torch.int64))
    padded = pad_rows(values, mask)
    assert padded.shape == (len(lengths), max(lengths, default=0))
    start = 0
    for row, length in zip(padded.tolist(), lengths, strict=True):
        expected = list(range(start + 1, start + length + 1))
        assert row == expected + [0] * (len(row) - length)
        start += length
    assert torch.equal(unpad_rows(padded, mask), values)
