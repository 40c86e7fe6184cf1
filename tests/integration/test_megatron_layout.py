"""The layout of Megatron-core against its own models: experts, interleaved stages, ranks."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import canonical_tensors
from tests.support.megatron_building import built
from tests.support.rank_processes import RankProcesses
from tests.support.stored_layouts import stored

NUM_RANKS = 4
DENSE = ModelArchitecture(
    family="qwen3",
    num_layers=8,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=99,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    qk_norm=True,
)
EXPERTS = replace(
    DENSE,
    family="qwen3_moe",
    num_experts=8,
    experts_per_token=2,
    expert_intermediate_size=16,
)
CASES = [
    (DENSE, "d2t2p1"),
    (DENSE, "d1t2p2"),
    (DENSE, "d1t1p4"),
    (DENSE, "d1t2p2v2"),
    (DENSE, "d1t1p4v2"),
    (replace(DENSE, tied_embeddings=True), "d1t2p2"),
    (replace(DENSE, tied_embeddings=True), "d1t1p4v2"),
    (EXPERTS, "d4t1p1e4"),
    (EXPERTS, "d4t1p1e2"),
    (EXPERTS, "d2t2p1e2"),
    (EXPERTS, "d2t1p2e2"),
    (EXPERTS, "d2t1p2v4e2"),
    (EXPERTS, "d1t2p2"),
]
_EXPERT = 1000
"""A tensor of expert e in layer n is filled with n + (e + 1) · this."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    """Four ranks, started once."""
    processes = RankProcesses(NUM_RANKS)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("ranks") / "meeting")


@pytest.mark.parametrize(("architecture", "strategy"), CASES)
def test_every_rank_has_the_parameters_layers_and_experts_that_megatron_gives_it(
    ranks: RankProcesses, meeting: str, architecture: ModelArchitecture, strategy: str
) -> None:
    """Names and shapes are those of the model that Megatron-core builds on the rank, and what a
    plan brings there is of the layer and the expert that Megatron-core takes it for."""
    parsed = ParallelStrategy.parse(strategy)
    devices = tuple(range(1, 1 + NUM_RANKS))
    layout = Layout(kind=LayoutKind.MEGATRON, strategy=parsed, devices=devices)
    numbered = {
        tensor.name: np.full(tensor.shape, number_of(tensor.name), np.float32)
        for tensor in canonical_tensors(architecture)
    }
    held = stored(architecture, layout, numbered)
    arguments = [(architecture, parsed, rank, meeting) for rank in range(NUM_RANKS)]
    for rank, found in enumerate(ranks.run(built, arguments)):
        shapes = {name: array.shape for name, array in held[rank].items()}
        assert found.shapes == shapes, rank
        for begin, layer in found.layers.items():
            assert (held[rank][f"{begin}input_layernorm.weight"] == layer).all()
            for local, expert in enumerate(found.experts[begin]):
                for part in ("linear_fc1", "linear_fc2"):
                    name = f"{begin}mlp.experts.local_experts.{local}.{part}.weight"
                    assert (held[rank][name] == layer + _EXPERT * (expert + 1)).all()


def number_of(name: str) -> int:
    """Of ``model.layers.N.….experts.E.…``; −1 outside the layers."""
    parts = name.split(".")
    if "layers" not in parts:
        return -1
    layer = int(parts[parts.index("layers") + 1])
    if "experts" not in parts:
        return layer
    return layer + _EXPERT * (int(parts[parts.index("experts") + 1]) + 1)
