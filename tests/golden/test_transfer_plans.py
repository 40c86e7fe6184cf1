"""Small plans and layouts as text: what changes here is reviewed like code.

``UPDATE_GOLDEN=1 pytest tests/golden/test_transfer_plans.py`` rewrites the files.
"""

import os
from pathlib import Path

import pytest

from realloc.reallocation.describe import describe_difference, describe_layout, describe_plan
from realloc.reallocation.limits import TransferLimits
from tests.unit.reallocation.cases import Case, architecture, layout

MODEL = architecture(
    "qwen2",
    num_layers=2,
    hidden_size=4,
    intermediate_size=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    vocab_size=7,
)
CASES = {
    "colocated_tp2_to_two_replicas": Case(
        model=MODEL, source=layout("megatron:d1t2p1"), destination=layout("vllm:d2t1p1")
    ),
    "disjoint_nodes_pp2_to_tp2": Case(
        model=MODEL,
        source=layout("megatron:d1t1p2"),
        destination=layout("vllm:d1t2p1", 4),
        limits=TransferLimits(staging_bytes=2048),
    ),
}


def check(name: str, text: str) -> None:
    """Compare with the file, or write it."""
    path = Path(__file__).with_name(f"{name}.txt")
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text(), f"{path.name} changed; UPDATE_GOLDEN=1 rewrites it"


@pytest.mark.parametrize("name", CASES)
def test_plan(name):
    """The programs of a small plan are those that were reviewed."""
    check(f"transfer_plan_{name}", describe_plan(CASES[name].plan()))


def test_difference():
    """What moves between two layouts, in short, is what was reviewed."""
    text = "\n".join(describe_difference(case.plan()) for case in CASES.values())
    check("differences_of_layouts", text)


def test_layouts():
    """What each engine's rank stores is what was reviewed."""
    texts = [
        describe_layout(MODEL, layout(text), rank)
        for text in ("megatron:d1t2p2", "vllm:d1t2p1", "fsdp:d2t1p1")
        for rank in (0, layout(text).strategy.num_ranks - 1)
    ]
    check("layouts_of_a_small_qwen2", "\n".join(texts))
