"""What the processes of the layout's test run: vLLM's own models and loader, without an engine."""

import hashlib
import os
from typing import Any

import numpy as np
import torch

from services.generation.vllm_engine import prepare_environment


def loaded(folder: str, rank: int, tensor: int, pipeline: int, meeting: str) -> dict[str, Any]:
    """This rank's parameters as vLLM loads them from a checkpoint, before it repacks any.

    Args:
        meeting: file through which the ranks meet; the first call uses it.
    """
    prepare_environment()
    # Names the shared memory of the ranks; vLLM's executor would set it.
    os.environ["VLLM_DIST_IDENT"] = hashlib.sha256(meeting.encode()).hexdigest()[:16]
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import destroy_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = EngineArgs(
        model=folder,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        distributed_executor_backend="mp",
        max_model_len=128,
    ).create_engine_config()
    with set_current_vllm_config(config), set_default_torch_dtype(torch.float32):
        init_distributed_environment(
            tensor * pipeline, rank, f"file://{meeting}", rank, backend="gloo"
        )
        destroy_model_parallel()  # only a model with experts gets a group for them
        initialize_model_parallel(tensor, pipeline)
        model = initialize_model(vllm_config=config)
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    return {
        name: np.array(parameter.detach().numpy()) for name, parameter in model.named_parameters()
    }
