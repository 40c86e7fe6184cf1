"""Building a Megatron-core model in a layout, with its optimizer where it trains."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from realloc.core.errors import Problem, raise_problems
from realloc.core.model import Head, ModelArchitecture
from realloc.core.settings import OptimizerSettings
from realloc.core.strategy import ParallelStrategy
from services.trainer.engine import ModelSpec
from services.trainer.megatron_groups import ModelGroups
from services.trainer.megatron_optimizer import create_optimizer
from services.trainer.megatron_spec import block_spec
from services.trainer.packed_rows import PackedRows
from services.trainer.rotary import RotaryAngles
from services.trainer.value_head import ValueHead

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families whose layers `megatron_spec` can build."""


@dataclass(slots=True, kw_only=True)
class MegatronModel:
    """A model on this rank: its part of the weights, and how to run and to train it."""

    spec: ModelSpec
    groups: ModelGroups
    config: TransformerConfig
    device: torch.device
    module: "PackedGPTModel"
    wrapped: Any
    """What the schedule runs: the module, in a gradient buffer where it trains."""
    optimizer: Any = None
    """The `DistributedOptimizer`, None for a model that never trains."""
    weight_version: int = 0

    def parameters(self) -> dict[str, Tensor]:
        """Live parameters of this rank by Megatron name."""
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}


class PackedGPTModel(GPTModel):
    """Megatron-core's GPT for packed rows, with outputs at the selected positions only.

    Called with ``(tokens [1, T], None, None, packed_seq_params=PackedRows)``. The last stage
    returns [1, N, columns]: logits of this tensor rank, or values; other stages hidden states.
    """

    def __init__(self, *, rotary: RotaryAngles, **kwargs: Any) -> None:
        super().__init__(position_embedding_type="none", **kwargs)
        self._rotary = rotary

    def _preprocess(self, *, packed_seq_params: PackedRows, **kwargs: Any) -> tuple[Any, ...]:
        decoder_input, _, *rest = super()._preprocess(packed_seq_params=packed_seq_params, **kwargs)
        return decoder_input, self._rotary.at(packed_seq_params.positions_T), *rest

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, packed_seq_params: PackedRows, **kwargs: Any
    ) -> Tensor:
        if self.post_process:  # prompts need no logits
            hidden_states = hidden_states.index_select(0, packed_seq_params.selected_N)
        output: Tensor = super()._postprocess(
            hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs
        )
        return output


def check_buildable(architecture: ModelArchitecture, strategy: ParallelStrategy) -> None:
    """Raise `InvalidInput` with everything that forbids this model in this layout."""
    tensor, pipeline = strategy.tensor, strategy.pipeline
    sizes = {
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "intermediate_size": architecture.intermediate_size,
    }
    problems = [
        Problem(name, f"is {size} and does not divide by {tensor} tensor ranks")
        for name, size in sizes.items()
        if size % tensor
    ]
    if architecture.num_layers % pipeline:
        problems.append(
            Problem(
                "num_layers",
                f"is {architecture.num_layers} and does not divide by {pipeline} stages",
            )
        )
    if architecture.family not in FAMILIES or architecture.num_experts:
        known = ", ".join(sorted(FAMILIES))
        problems.append(
            Problem("family", f"{architecture.family!r} is not one the trainer builds: {known}")
        )
    if not strategy.is_plain:
        problems.append(
            Problem("strategy", f"is {strategy}; the trainer knows data, tensor and pipeline")
        )
    raise_problems(problems)


def build_module(
    spec: ModelSpec, groups: ModelGroups, padded_vocab_size: int, device: torch.device
) -> MegatronModel:
    """Allocate the model's part of this rank; every weight is zero until it is loaded."""
    config = _transformer_config(spec, groups.strategy, device)
    architecture = spec.architecture
    module = PackedGPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, groups.place.pipeline),
        vocab_size=padded_vocab_size,
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=groups.is_first_stage,
        post_process=groups.is_last_stage,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        pg_collection=groups.collection,
        rotary=RotaryAngles(architecture, device),
    )
    if architecture.head is Head.VALUE and groups.is_last_stage:
        module.output_layer = ValueHead(config, device)
    _mark_partitions(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
            parameter.requires_grad_(spec.optimizer is not None)
    return MegatronModel(
        spec=spec, groups=groups, config=config, module=module, wrapped=module, device=device
    )


def make_trainable(
    model: MegatronModel, settings: OptimizerSettings, frozen: Collection[str] = ()
) -> None:
    """Move the weights into gradient buffers and create the distributed optimizer's state.

    Args:
        frozen: names of parameters that keep their weights; they get neither.
    """
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if model.spec.recompute and model.groups.is_first_stage:
        # A recomputed layer has gradients only where its input has, frozen embedding or not.
        model.module.embedding.register_forward_hook(_require_gradient)
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=True
    )
    model.wrapped = DistributedDataParallel(
        model.config, buffers, model.module, pg_collection=model.groups.collection
    )
    model.optimizer = create_optimizer(model.wrapped, settings, model.groups)


def _require_gradient(layer: Any, inputs: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_(torch.is_grad_enabled())


def _mark_partitions(module: torch.nn.Module) -> None:
    """Tell weights that differ between tensor ranks from copies.

    Megatron-core does so only while it initialises them; without the mark the gradient's norm
    would count tensor rank 0 alone.
    """
    split_dims = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}
    for layer in module.modules():
        dim = split_dims.get(type(layer))
        if dim is not None and layer.weight is not None:
            set_tensor_model_parallel_attributes(layer.weight, True, dim, 1)


def _transformer_config(
    spec: ModelSpec, strategy: ParallelStrategy, device: torch.device
) -> TransformerConfig:
    architecture = spec.architecture
    recompute = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.intermediate_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_key_value_heads,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        perform_initialization=False,
        use_cpu_initialization=device.type == "cpu",
        params_dtype=torch.float32,
        tensor_model_parallel_size=strategy.tensor,
        pipeline_model_parallel_size=strategy.pipeline,
        pipeline_dtype=torch.float32,
        variable_seq_lengths=strategy.pipeline > 1,
        moe_token_dispatcher_type="alltoall",  # or variable lengths are refused, also here
        # Losses come divided by the global number of tokens: no division by micro-batches and
        # data ranks, neither in the schedule nor in the gradient buffers.
        calculate_per_token_loss=True,
        finalize_model_grads_func=_finalize_gradients,
        **(recompute if spec.recompute else {}),
    )


def _finalize_gradients(models: Any, num_tokens: Any, **kwargs: Any) -> None:
    """Reduce gradients over data ranks and tied embeddings, without a division by tokens."""
    finalize_model_grads(models, None, **kwargs)
