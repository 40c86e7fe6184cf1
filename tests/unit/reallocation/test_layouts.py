"""What each provider says a rank stores, against each engine's own way to cut weights."""

import numpy as np
import pytest

from realloc.core.layout import LayoutKind
from realloc.core.model import Head
from realloc.reallocation.families import canonical_names
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.layouts.tensor_parallel import padded_vocab_size
from tests.unit.reallocation.cases import Case, architecture, filled, layout


def stored(model, text):
    """Weights by canonical name, and every rank's parameters."""
    case = Case(model=model, source=layout(text), destination=layout(text))
    weights = case.weights()
    named = dict(zip(canonical_names(model), weights, strict=True))
    return named, [filled(table, weights) for table in case.tables(case.source)]


def test_huggingface_is_the_checkpoint():
    """The huggingface layout holds every canonical tensor under its own name."""
    weights, (held,) = stored(architecture("qwen2"), "huggingface:d1t1p1")
    assert set(held) == set(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(held[name], weight)


def fused_qkv(weights, model, layer, leaf):
    """Megatron's interleaved rows, as its loaders make them."""
    q, k, v = (weights[f"model.layers.{layer}.self_attn.{n}_proj.{leaf}"] for n in "qkv")
    groups, rest = model.num_key_value_heads, q.shape[1:]
    parts = [tensor.reshape(groups, -1, *rest) for tensor in (q, k, v)]
    return np.concatenate(parts, axis=1).reshape(-1, *rest)


@pytest.mark.parametrize("tp", [1, 2, 3, 6, 12])
def test_megatron_tensor_parallel(tp):
    """Fused qkv is cut from interleaved groups, fc1 is [gate; up] per rank, the rest is even."""
    model = architecture("qwen2")
    weights, ranks = stored(model, f"megatron:d1t{tp}p1")
    layer, local = "model.layers.1.", "decoder.layers.1."
    for rank, held in enumerate(ranks):
        for leaf in ("weight", "bias"):
            expected = np.split(fused_qkv(weights, model, 1, leaf), tp)[rank]
            found = held[f"{local}self_attention.linear_qkv.{leaf}"]
            np.testing.assert_array_equal(found, expected)
        halves = [
            np.split(weights[f"{layer}mlp.{n}_proj.weight"], tp)[rank] for n in ("gate", "up")
        ]
        np.testing.assert_array_equal(held[f"{local}mlp.linear_fc1.weight"], np.concatenate(halves))
        for name, hf in (
            ("mlp.linear_fc2", "mlp.down_proj"),
            ("self_attention.linear_proj", "self_attn.o_proj"),
        ):
            expected = np.split(weights[f"{layer}{hf}.weight"], tp, axis=1)[rank]
            np.testing.assert_array_equal(held[f"{local}{name}.weight"], expected)
        np.testing.assert_array_equal(
            held[f"{local}pre_mlp_layernorm.weight"],
            weights[f"{layer}post_attention_layernorm.weight"],
        )
    embedding = np.concatenate([held["embedding.word_embeddings.weight"] for held in ranks])
    assert len(embedding) == padded_vocab_size(model, LayoutKind.MEGATRON, tp)
    np.testing.assert_array_equal(embedding[:99], weights["model.embed_tokens.weight"])
    assert np.isnan(embedding[99:]).all()


def test_megatron_chunks_of_an_interleaved_pipeline():
    """Chunk c of stage p begins at layer c · L/v + p · L/(p·v), as Megatron offsets it."""
    model = architecture(num_layers=12)
    weights, ranks = stored(model, "megatron:d1t1p2v3")
    for stage, held in enumerate(ranks):
        for chunk in range(3):
            for number in range(2):
                layer = chunk * 4 + stage * 2 + number
                np.testing.assert_array_equal(
                    held[f"{chunk}.decoder.layers.{number}.input_layernorm.weight"],
                    weights[f"model.layers.{layer}.input_layernorm.weight"],
                )
    assert "0.embedding.word_embeddings.weight" in ranks[0]
    assert "2.decoder.final_layernorm.weight" in ranks[1]
    assert "2.output_layer.weight" in ranks[1]
    assert "2.output_layer.weight" not in ranks[0]


def test_megatron_tied_embeddings_and_value_heads():
    """Tied: only a last stage without the embedding has a copy. Value: one row everywhere."""
    tied = architecture(tied_embeddings=True)
    _, (single,) = stored(tied, "megatron:d1t1p1")
    assert "output_layer.weight" not in single
    weights, (_, last) = stored(tied, "megatron:d1t1p2")
    np.testing.assert_array_equal(last["output_layer.weight"], weights["model.embed_tokens.weight"])
    weights, ranks = stored(tied.with_head(Head.VALUE), "megatron:d1t2p1")
    for held in ranks:
        np.testing.assert_array_equal(held["output_layer.weight"], weights["score.weight"])


def test_megatron_experts():
    """Expert ranks hold equal runs of experts, each cut by the tensor degree."""
    weights, ranks = stored(architecture("mixtral"), "megatron:d4t2p1e2")
    for rank, held in enumerate(ranks):
        expert_rank, tensor_rank = rank // 2 % 2, rank % 2
        for local in range(2):
            hf = f"model.layers.0.block_sparse_moe.experts.{expert_rank * 2 + local}."
            name = f"decoder.layers.0.mlp.experts.local_experts.{local}."
            halves = [np.split(weights[f"{hf}{w}.weight"], 2)[tensor_rank] for w in ("w1", "w3")]
            np.testing.assert_array_equal(held[f"{name}linear_fc1.weight"], np.concatenate(halves))
            np.testing.assert_array_equal(
                held[f"{name}linear_fc2.weight"],
                np.split(weights[f"{hf}w2.weight"], 2, axis=1)[tensor_rank],
            )
        assert len([name for name in held if "layers.0.mlp.experts" in name]) == 4


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_vllm_tensor_parallel(tp):
    """qkv and gate_up are stacked per rank; KV heads repeat where tp exceeds them."""
    model = architecture("qwen3", num_attention_heads=12, num_key_value_heads=2, vocab_size=130)
    weights, ranks = stored(model, f"vllm:d1t{tp}p1")
    layer = "model.layers.3."
    for rank, held in enumerate(ranks):
        q, k, v = (weights[f"{layer}self_attn.{n}_proj.weight"] for n in "qkv")
        heads = [np.split(tensor, 2)[rank * 2 // tp] for tensor in (k, v)]
        if tp == 1:
            heads = [k, v]
        expected = np.concatenate([np.split(q, tp)[rank], *heads])
        np.testing.assert_array_equal(held[f"{layer}self_attn.qkv_proj.weight"], expected)
        halves = [
            np.split(weights[f"{layer}mlp.{n}_proj.weight"], tp)[rank] for n in ("gate", "up")
        ]
        np.testing.assert_array_equal(
            held[f"{layer}mlp.gate_up_proj.weight"], np.concatenate(halves)
        )
        np.testing.assert_array_equal(
            held[f"{layer}self_attn.q_norm.weight"], weights[f"{layer}self_attn.q_norm.weight"]
        )
    head = np.concatenate([held["lm_head.weight"] for held in ranks])
    assert head.shape == (192, model.hidden_size)
    np.testing.assert_array_equal(head[:130], weights["lm_head.weight"])


def test_vllm_pipeline_keeps_global_layer_numbers():
    """Ten layers on four stages are 2, 3, 3 and 2; the last has norm, head, tied embedding."""
    model = architecture(num_layers=10, tied_embeddings=True)
    _, ranks = stored(model, "vllm:d1t1p4")
    held = [
        sorted({int(name.split(".")[2]) for name in rank if "layers" in name}) for rank in ranks
    ]
    assert held == [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9]]
    embeds = ["model.embed_tokens.weight" in rank for rank in ranks]
    assert embeds == [True, False, False, True]
    assert ["model.norm.weight" in rank for rank in ranks] == [False, False, False, True]


def test_vllm_experts():
    """w13 stacks [gate; up] per expert and w2 the downs, cut by tp or whole under EP."""
    weights, ranks = stored(architecture("qwen3_moe"), "vllm:d1t2p1")
    routed = "model.layers.0.mlp.experts.routed_experts."
    for rank, held in enumerate(ranks):
        for expert in range(4):
            hf = f"model.layers.0.mlp.experts.{expert}."
            halves = [np.split(weights[f"{hf}{n}_proj.weight"], 2)[rank] for n in ("gate", "up")]
            np.testing.assert_array_equal(
                held[f"{routed}w13_weight"][expert], np.concatenate(halves)
            )
            np.testing.assert_array_equal(
                held[f"{routed}w2_weight"][expert],
                np.split(weights[f"{hf}down_proj.weight"], 2, axis=1)[rank],
            )
    weights, ranks = stored(architecture("qwen3_moe", num_experts=5), "vllm:d2t2p1e2")
    assert [len(held[f"{routed}w2_weight"]) for held in ranks] == [2, 1, 1, 1]
    np.testing.assert_array_equal(
        ranks[2][f"{routed}w2_weight"][0], weights["model.layers.0.mlp.experts.3.down_proj.weight"]
    )


def test_fsdp_cuts_the_first_dimension_like_torch_chunk():
    """ceil(rows / ranks) rows each; the last ranks have fewer, or none."""
    weights, ranks = stored(architecture(), "fsdp:d5t1p1")
    for name, weight in weights.items():
        rows = -(-len(weight) // 5)
        for rank, held in enumerate(ranks):
            np.testing.assert_array_equal(held[name], weight[rank * rows : (rank + 1) * rows])


def test_blocks_cover_a_rank_without_overlap():
    """Real rows of a parameter are covered once, and pads are covered by nothing."""
    model = architecture("qwen2")
    for text in ("megatron:d1t2p1", "vllm:d1t2p2", "fsdp:d3t1p1"):
        for rank in range(layout(text).strategy.num_ranks):
            table = local_parameters(model, layout(text), rank)
            covered = [np.zeros(p.num_elements, dtype=np.int64) for p in table.parameters]
            b = table.blocks
            for i in range(len(b)):
                rows = np.arange(b.rows[i])[:, None] * b.row_stride[i]
                np.add.at(covered[b.tensor[i]], b.start[i] + rows + np.arange(b.cols[i]), 1)
            for parameter, count in zip(table.parameters, covered, strict=True):
                assert count.max(initial=1) == 1
                if "embed" not in parameter.name and "head" not in parameter.name:
                    assert count.min(initial=1) == 1 or "output_layer" in parameter.name
