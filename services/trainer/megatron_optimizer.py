"""The distributed optimizer of one model: each data rank keeps a share of Adam's state.

Megatron-core's own factory gathers pickled objects over the whole world, so it hangs where a
model lies on some of the ranks only; this one needs no communication.
"""

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from realloc.core.settings import OptimizerSettings
from services.trainer.megatron_groups import ModelGroups


def create_optimizer(
    wrapped: DistributedDataParallel, settings: OptimizerSettings, groups: ModelGroups
) -> DistributedOptimizer:
    """AdamW over the model's gradient buffers; norms and biases do not decay."""
    adam = torch.optim.AdamW(
        _parameter_groups(wrapped, settings),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        # The norm is only computed where clipping is on; nothing exceeds infinity.
        clip_grad=settings.max_grad_norm or float("inf"),
        params_dtype=torch.float32,
        use_distributed_optimizer=True,
    )
    optimizer = DistributedOptimizer(
        adam,
        config,
        grad_scaler=None,
        init_state_fn=create_state,
        model_chunks=[wrapped],
        per_model_buffers={0: wrapped.buffers},
        data_parallel_group=groups.data,
        data_parallel_group_gloo=None,
        data_parallel_group_idx=groups.collection.mp.rank(),
        distributed_optimizer_instance_id=0,
    )
    # The gradient's norm is over all ranks: each holds a different part of the gradient.
    optimizer.grad_stats_parallel_group = groups.everyone
    optimizer.tp_group = groups.tensor
    return optimizer


def _parameter_groups(
    wrapped: DistributedDataParallel, settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Matrices, which decay, and the rest; Megatron-core reads the other keys."""
    parameters = [one for one in wrapped.module.parameters() if one.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [
        {
            "params": members,
            "weight_decay": decay,
            "wd_mult": float(decay > 0),
            "lr_mult": 1.0,
            "is_expert_parallel": False,
            "is_decoupled_lr": False,
            "default_config": True,
        }
        for members, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if members
    ]


def create_state(optimizer: torch.optim.Optimizer, config: Any = None) -> None:
    """Zero moments where there are none yet, so that they can be saved and restored."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
