"""Weights are read and written by rectangles of canonical tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from realloc.core.errors import InvalidInput
from realloc.reallocation.families import CanonicalTensor
from services.trainer.safetensors_reader import SafetensorsReader
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


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    """Another file, one that is cut off, an element type of no weights: with the path."""
    path = tmp_path / "model.safetensors"
    with SafetensorsWriter(path, [MATRIX]) as writer:
        writer.write(np.zeros((6, 4), np.float32))
    whole = path.read_bytes()
    for content, reason in (
        (b"", "no header"),
        (b"GGUF" * 10, "no header"),
        (whole[:-1], "does not lie within the file"),
        (whole.replace(b"F32", b"I64"), "has type I64; weights are F64"),
        (whole.replace(b"[6,4]", b"[9,4]"), "does not lie within the file"),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=reason) as caught:
            SafetensorsReader(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cols", [8, 1024])
def test_rectangles_are_read_as_the_library_reads_them(
    tmp_path: Path, dtype: torch.dtype, cols: int
) -> None:
    """Narrow and wide columns, in every type that weights have."""
    values = torch.randn(6, 2048).to(dtype)
    save_file({"a": values, "b": values.flatten().clone()}, tmp_path / "model.safetensors")
    file = SafetensorsReader(tmp_path / "model.safetensors")
    assert torch.equal(file.read("a", 2, 3, 16, cols), values[2:5, 16 : 16 + cols])
    assert torch.equal(file.read("a", 1, 5, 0, 2048), values[1:])
    assert torch.equal(file.read("b", 7, 9, 0, 1)[:, 0], values.flatten()[7:16])
    file.close()
