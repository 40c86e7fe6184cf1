"""The layout of vLLM against vLLM's own loader, for every family."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import KNOWN_FAMILIES
from tests.support.rank_processes import RankProcesses
from tests.support.stored_layouts import stored
from tests.support.vllm_loading import loaded
from tests.tiny_models import tiny_hf_model

NUM_RANKS = 2
OUTER = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    """Two ranks, started once."""
    processes = RankProcesses(NUM_RANKS)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("ranks") / "meeting")


@pytest.mark.parametrize(
    ("tensor", "pipeline", "key_value_heads"), [(2, 1, 2), (2, 1, 1), (1, 2, 2)]
)
@pytest.mark.parametrize("family", sorted(KNOWN_FAMILIES))
def test_every_rank_holds_what_vllm_loads_there(
    ranks: RankProcesses,
    meeting: str,
    tmp_path: Path,
    family: str,
    tensor: int,
    pipeline: int,
    key_value_heads: int,
) -> None:
    """A checkpoint planned from Hugging Face's layout to two ranks of vLLM gives, parameter by
    parameter and bit by bit, what vLLM's loader makes of it: tensor ranks, with KV heads of their
    own or replicated ones, and pipeline stages."""
    tiny_hf_model(family, 1, tmp_path, num_key_value_heads=key_value_heads)
    config = json.loads((tmp_path / "config.json").read_text())
    architecture = ModelArchitecture.from_hf_config(config)
    strategy = ParallelStrategy(tensor=tensor, pipeline=pipeline)
    layout = Layout(kind=LayoutKind.VLLM, strategy=strategy, devices=(1, 2))
    expected = stored(architecture, layout, load_file(tmp_path / "model.safetensors"))
    arguments = [(str(tmp_path), rank, tensor, pipeline, meeting) for rank in range(NUM_RANKS)]
    for rank, found in enumerate(ranks.run(loaded, arguments, timeout_seconds=120)):
        wanted = expected[rank]
        if pipeline > 1:  # some models have on every stage what the first or the last one uses
            unused = OUTER - wanted.keys()
            found = {name: array for name, array in found.items() if name not in unused}
        assert {name: array.shape for name, array in found.items()} == {
            name: array.shape for name, array in wanted.items()
        }
        assert [name for name, array in found.items() if (array != wanted[name]).any()] == []
