"""Pieces cover exactly what a range of a parameter holds, and know where it belongs."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.layouts.provider import local_parameters
from services.trainer.pieces import (
    blocks_by_parameter,
    copies,
    parse_piece_name,
    piece_name,
    pieces_of_block,
)
from tests.tiny_models import tiny_config

STRATEGIES = ("d1t1p1", "d1t2p1", "d1t1p2", "d1t2p2")


@settings(max_examples=30, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    tied=st.booleans(),
    cuts=st.lists(st.floats(0, 1), max_size=3),
)
def test_pieces_of_all_ranges_are_the_whole_model(
    strategy: str, tied: bool, cuts: list[float]
) -> None:
    """Cut each parameter of each rank anywhere: written to their places, the pieces give every
    canonical tensor, each element once."""
    config = tiny_config("llama", tie_word_embeddings=tied, vocab_size=261)
    architecture = ModelArchitecture.from_hf_config(config)
    layout = Layout.parse(strategy)
    tensors = canonical_tensors(architecture)
    counts = {tensor.name: np.zeros((tensor.shape[0], tensor.cols), int) for tensor in tensors}
    earlier = []
    for rank in range(layout.strategy.num_ranks):
        table = local_parameters(architecture, layout, rank)
        own = blocks_by_parameter(table, copies(table.blocks, earlier))
        earlier.append(table.blocks)
        for parameter in table.parameters:
            size = parameter.num_elements
            bounds = [0, *sorted(int(cut * size) for cut in cuts), size]
            expected = element_ids(table, parameter.name, tensors)
            for start, end in pairwise(bounds):
                owned = torch.from_numpy(expected[start:end])
                for index in own[parameter.name]:
                    tensor = tensors[table.blocks.canonical[index]]
                    for piece in pieces_of_block(table.blocks, index, tensor, start, end):
                        box = piece.box
                        where = np.s_[box.row : box.row + box.rows, box.col : box.col + box.cols]
                        counts[tensor.name][where] += 1
                        ids = np.arange(tensor.num_elements).reshape(-1, tensor.cols)[where]
                        np.testing.assert_array_equal(piece.view(owned).numpy(), ids)
    for name, count in counts.items():
        assert (count == 1).all(), name


def element_ids(table, name, tensors):  # type: ignore[no-untyped-def]  # arrays of a test
    """For each element of a parameter its number in its canonical tensor, by brute force."""
    parameter = next(each for each in table.parameters if each.name == name)
    found = np.full(parameter.num_elements, -1)
    blocks = table.blocks
    for i in range(len(blocks)):
        if table.parameters[blocks.tensor[i]].name != name:
            continue
        for row in range(blocks.rows[i]):
            start = blocks.start[i] + row * blocks.row_stride[i]
            first = blocks.canonical_start[i] + row * blocks.canonical_stride[i]
            found[start : start + blocks.cols[i]] = first + np.arange(blocks.cols[i])
    return found


def test_names_of_pieces_come_back() -> None:
    """A name says where its piece lies."""
    name = piece_name("actor", "exp_avg", "model.layers.0.mlp.up_proj.weight", 128, 7)
    assert parse_piece_name(name) == ("actor/exp_avg/model.layers.0.mlp.up_proj.weight", 128, 7)
