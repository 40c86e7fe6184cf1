"""Architectures that the cost model's tests share."""

from dataclasses import replace

from realloc.core.model import ModelArchitecture


def llama(
    *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> ModelArchitecture:
    return ModelArchitecture(
        family="llama",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
    )


LLAMA_8B = llama(
    hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocabulary=128_256
)
LLAMA_70B = llama(
    hidden=8192, intermediate=28672, layers=80, heads=64, kv_heads=8, vocabulary=128_256
)
MIXTRAL = replace(
    llama(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocabulary=32_000),
    family="mixtral",
    num_experts=8,
    experts_per_token=2,
    expert_intermediate_size=14336,
)
