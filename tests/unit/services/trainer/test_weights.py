"""Weights are read and written by rectangles of canonical tensors."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from realloc.reallocation.families import CanonicalTensor
from services.trainer.safetensors_writer import SafetensorsWriter
from services.trainer.weights import Box, HuggingFaceWeights, RandomWeights

MATRIX = CanonicalTensor(name="model.layers.0.mlp.up_proj.weight", shape=(6, 4))
VECTOR = CanonicalTensor(name="model.norm.weight", shape=(5,))
HEAD = CanonicalTensor(name="score.weight", shape=(1, 4))


def test_a_random_rectangle_is_a_part_of_the_whole() -> None:
    """Any rectangle shows the same numbers as the whole tensor, in whatever order it is read."""
    whole = RandomWeights(3, 0.1).read(MATRIX, Box(row=0, rows=6, col=0, cols=4))
    source = RandomWeights(3, 0.1)
    source.read(HEAD, Box(row=0, rows=1, col=0, cols=4))
    assert torch.equal(source.read(MATRIX, Box(row=2, rows=3, col=1, cols=2)), whole[2:5, 1:3])


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    """What is written tensor by tensor, the library reads; rectangles of it are read alike, and
    a missing value head comes from elsewhere."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((6, 4)).astype(np.float32)
    vector = random.standard_normal(5).astype(np.float32)
    with SafetensorsWriter(tmp_path / "model.safetensors", [MATRIX, VECTOR]) as writer:
        writer.write(matrix)
        writer.write(vector)
    found = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found[MATRIX.name], matrix)
    np.testing.assert_array_equal(found[VECTOR.name], vector)
    head = RandomWeights(1, 1.0)
    source = HuggingFaceWeights(tmp_path, [MATRIX, VECTOR, HEAD], head)
    box = Box(row=1, rows=4, col=2, cols=2)
    np.testing.assert_array_equal(source.read(MATRIX, box), matrix[1:5, 2:])
    column = source.read(VECTOR, Box(row=2, rows=2, col=0, cols=1))
    np.testing.assert_array_equal(column, vector[2:4, None])
    whole = Box(row=0, rows=1, col=0, cols=4)
    assert torch.equal(source.read(HEAD, whole), head.read(HEAD, whole))
