"""Transfer plans, executed by the numpy reference."""

import numpy as np
import pytest

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head, ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint
from realloc.reallocation.digest import block_digests, tensor_digest
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.planner import plan_transfer
from realloc.reallocation.reference import execute, fill


def architecture(family="llama", **changes):
    settings = {
        "family": family,
        "num_layers": 4,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "head_dim": 4,
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "qkv_bias": family == "qwen2",
        "qk_norm": family.startswith("qwen3"),
        "num_experts": 4 if family in ("mixtral", "qwen3_moe") else 0,
        "expert_intermediate_size": 12,
    }
    return ModelArchitecture(**(settings | changes))


def layout(text, first=0):
    kind, strategy = text.split(":")
    strategy = ParallelStrategy.parse(strategy)
    return Layout(
        kind=LayoutKind(kind),
        strategy=strategy,
        devices=tuple(range(first, first + strategy.num_ranks)),
    )


def endpoints(layout_, prefix):
    return [Endpoint(name=f"{prefix}-{d}", device=d, node=d // 4) for d in layout_.devices]


def weights(model):
    random = np.random.default_rng(0)
    return [random.standard_normal(t.shape).astype(np.float32) for t in canonical_tensors(model)]


def buffers(table, value=np.nan):
    return [np.full(p.shape, value, dtype=np.float32) for p in table.parameters]


def named(table, arrays):
    return {p.name: a for p, a in zip(table.parameters, arrays, strict=True)}


def check(model, source, destination, same_process=False):
    canonical = weights(model)
    have = endpoints(source, "trainer")
    want = endpoints(destination, "trainer" if same_process else "generation")
    plan = plan_transfer(
        model,
        source,
        destination,
        source_endpoints=have,
        destination_endpoints=want,
        dtype="float32",
    )
    sources, targets, expected = {}, {}, {}
    for rank, endpoint in enumerate(have):
        table = local_parameters(model, source, rank)
        arrays = buffers(table)
        fill(table.blocks, arrays, canonical)
        sources[endpoint.name] = named(table, arrays)
    for rank, endpoint in enumerate(want):
        table = local_parameters(model, destination, rank)
        arrays = buffers(table)
        fill(table.blocks, arrays, canonical)
        expected[endpoint.name] = named(table, arrays)
        targets[endpoint.name] = named(table, buffers(table))
    execute(plan, sources, targets)
    for endpoint, arrays in expected.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(targets[endpoint][name], array, err_msg=name)
    return plan


LAYOUTS = [
    "megatron:d1t2p1",
    "megatron:d2t1p2",
    "megatron:d1t3p2v2",
    "megatron:d1t12p1",
    "megatron:d1t6p1",
    "vllm:d2t1p1",
    "vllm:d1t2p2",
    "huggingface:d1t1p1",
    "fsdp:d5t1p1",
]


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("destination", LAYOUTS)
def test_any_layout_to_any(source, destination):
    """Every destination parameter gets the bits that its table says, from any layout."""
    check(architecture(), layout(source), layout(destination, first=2))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", list(Head))
def test_families(family, tied, head):
    """Every family moves between the layouts, with either head, tied or not."""
    model = architecture(family, tied_embeddings=tied).with_head(head)
    check(
        model,
        layout("megatron:d2t2p2e2" if model.num_experts else "megatron:d1t2p2"),
        layout("vllm:d2t2p1"),
        same_process=True,
    )
    check(model, layout("vllm:d2t2p2"), layout("megatron:d1t1p4"))


def test_digests_agree():
    """The digests summed over a layout's blocks are those of the whole tensors."""
    model = architecture()
    canonical = weights(model)
    spread = layout("megatron:d1t2p2")
    total = np.zeros(len(canonical), dtype=np.int64)
    for rank in range(4):
        table = local_parameters(model, spread, rank)
        arrays = buffers(table)
        fill(table.blocks, arrays, canonical)
        flats = [array.reshape(-1) for array in arrays]
        total += block_digests(flats, table.blocks, len(canonical))
    names = [t.name for t in canonical_tensors(model)]
    single = [i for i, name in enumerate(names) if "norm" not in name]
    assert [total[i] for i in single] == [tensor_digest(canonical[i]) for i in single]
