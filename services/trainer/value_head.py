"""The head of critics and reward models: one number per token."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class ValueHead(torch.nn.Module):
    """A projection to one float32 per token, in the place of Megatron-core's output layer.

    Each tensor rank holds all of it, and as every one sees the same hidden states, all get the
    same gradient: nothing is reduced.
    """

    def __init__(self, config: TransformerConfig, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.empty(1, config.hidden_size, dtype=config.params_dtype, device=device)
        )

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        """[N, 1, hidden] in, [N, 1, 1] out, and no bias, as Megatron-core's linear layers."""
        return torch.nn.functional.linear(hidden, self.weight).float(), None
