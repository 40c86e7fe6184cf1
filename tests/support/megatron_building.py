"""What the processes of the layout's test run: Megatron-core's own model, under its own groups."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from realloc.core.layout import LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.layouts.tensor_parallel import padded_vocab_size
from services.trainer import megatron_shim


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One rank's part of a model."""

    shapes: dict[str, tuple[int, ...]]
    """Of every parameter."""
    layers: dict[str, int]
    """Number in the whole model of each layer, by the beginning of its names."""
    experts: dict[str, list[int]]
    """The same of each local expert of a layer, in order."""


def built(
    architecture: ModelArchitecture, strategy: ParallelStrategy, rank: int, meeting: str
) -> Built:
    """Build this rank's part; all ranks do this at the same time.

    Args:
        meeting: file through which the ranks meet; the first call uses it.
    """
    megatron_shim.install()
    from megatron.core import parallel_state

    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=strategy.num_ranks
        )
    chunks = strategy.virtual_pipeline
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=strategy.tensor,
        pipeline_model_parallel_size=strategy.pipeline,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        expert_model_parallel_size=strategy.expert,
        expert_tensor_parallel_size=strategy.tensor,
    )
    found = Built(shapes={}, layers={}, experts={})
    for chunk in range(chunks):
        prefix = f"{chunk}." if chunks > 1 else ""
        _add(found, prefix, _model(architecture, strategy, chunk if chunks > 1 else None))
    return found


def _add(found: Built, prefix: str, model: Any) -> None:
    for name, parameter in model.named_parameters():
        found.shapes[prefix + name] = tuple(parameter.shape)
    for number, layer in enumerate(model.decoder.layers):
        begin = f"{prefix}decoder.layers.{number}."
        found.layers[begin] = layer.layer_number - 1
        found.experts[begin] = list(getattr(layer.mlp, "local_expert_indices", []))


def _model(architecture: ModelArchitecture, strategy: ParallelStrategy, chunk: int | None) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    experts = architecture.num_experts or None
    config = TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.intermediate_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_key_value_heads,
        kv_channels=architecture.head_dim,
        num_moe_experts=experts,
        moe_ffn_hidden_size=architecture.expert_intermediate_size if experts else None,
        moe_token_dispatcher_type="allgather",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        qk_layernorm=architecture.qk_norm,
        tensor_model_parallel_size=strategy.tensor,
        pipeline_model_parallel_size=strategy.pipeline,
        virtual_pipeline_model_parallel_size=(
            strategy.virtual_pipeline if strategy.virtual_pipeline > 1 else None
        ),
        expert_model_parallel_size=strategy.expert,
        expert_tensor_parallel_size=strategy.tensor,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
    stage = {} if chunk is None else {"vp_stage": chunk}
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(
            num_experts=experts,
            moe_grouped_gemm=False,
            qk_layernorm=architecture.qk_norm,
            normalization="RMSNorm",
        ),
        vocab_size=padded_vocab_size(architecture, LayoutKind.MEGATRON, strategy.tensor),
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, **stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, **stage),
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="rope",
        **stage,
    )
