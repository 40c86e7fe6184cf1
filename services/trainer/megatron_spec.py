"""The layers that Megatron-core builds a model from: plain torch, on CPU and on CUDA.

Megatron-core's local layers refuse packed rows in attention, and its other layers need
Transformer Engine. These need neither. A spec is a value: pass another one to `build_model`
to use other kernels. Why our own: docs/adr/0003-own-layer-spec.md.

Shapes: T packed tokens, H query heads, G key-value heads, D size of a head, B rows, S tokens
of the longest row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from services.trainer.packed_rows import PackedRows


class RMSNorm(torch.nn.Module):
    """Root mean square normalisation."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any
    ) -> None:
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class PackedAttention(MegatronModule):
    """Causal attention within each packed row."""

    def __init__(
        self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any
    ) -> None:
        super().__init__(config=config)
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedRows,
        **_: Any,
    ) -> Tensor:
        """[T, 1, H, D] and twice [T, 1, G, D] in, [T, 1, H · D] out."""
        rows = packed_seq_params
        query, key, value = (x.squeeze(1) for x in (query, key, value))
        if query.is_cuda and query.dtype is not torch.float32:
            out = self._attend_varlen(query, key, value, rows)
        elif rows.padded_T is None:
            out = self._attend_one_by_one(query, key, value, rows)
        else:
            out = self._attend_padded(query, key, value, rows)
        return out.reshape(out.shape[0], 1, -1)

    def _attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, rows: PackedRows) -> Tensor:
        out = varlen_attn(
            query,
            key,
            value,
            rows.cu_seqlens,
            rows.cu_seqlens,
            rows.longest,
            rows.longest,
            scale=self._scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out, Tensor)
        return out

    def _attend_padded(self, query: Tensor, key: Tensor, value: Tensor, rows: PackedRows) -> Tensor:
        """All rows at once; what pads a row stands behind it, where nothing looks."""
        q, k, v = (_pad(x, rows).transpose(1, 2) for x in (query, key, value))
        out = self._attend(q, k, v).transpose(1, 2).flatten(0, 1)
        if rows.is_rectangular:
            return out
        assert rows.padded_T is not None
        return out.index_select(0, rows.padded_T)

    def _attend_one_by_one(
        self, query: Tensor, key: Tensor, value: Tensor, rows: PackedRows
    ) -> Tensor:
        lengths = list(rows.lengths)
        split = [torch.split(x.transpose(0, 1), lengths, 1) for x in (query, key, value)]
        outs = [self._attend(q, k, v).transpose(0, 1) for q, k, v in zip(*split, strict=True)]
        return torch.cat(outs)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[..., heads, tokens, D], causal."""
        grouped = q.shape[-3] != k.shape[-3]
        if q.dim() == 3:  # the CPU's fused kernel wants a batch
            q, k, v = (x.unsqueeze(0) for x in (q, k, v))
            return self._attend(q, k, v).squeeze(0)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self._scale, enable_gqa=grouped
        )


def _pad(x: Tensor, rows: PackedRows) -> Tensor:
    """[T, heads, D] → [B, S, heads, D]."""
    shape = (len(rows.lengths), rows.longest, *x.shape[1:])
    if rows.is_rectangular:
        return x.reshape(shape)
    assert rows.padded_T is not None
    flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
    return flat.index_copy(0, rows.padded_T, x).view(shape)


def layer_spec(qk_norm: bool) -> ModuleSpec:
    """One decoder layer: pre-norm, grouped-query attention, gated MLP."""
    norm = RMSNorm if qk_norm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=PackedAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=norm,
        k_layernorm=norm,
    )
    mlp = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=attention,
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def block_spec(config: TransformerConfig, pipeline_rank: int) -> TransformerBlockSubmodules:
    """The layers of one pipeline stage."""
    num_layers = get_num_layers_to_build(config, vp_stage=None, pp_rank=pipeline_rank)
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(config.qk_layernorm)] * num_layers, layer_norm=RMSNorm
    )
