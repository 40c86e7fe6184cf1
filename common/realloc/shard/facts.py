"""What a shard knows of its device, for `realloc doctor`."""

import torch

from realloc.rpc.diagnostics import ShardFacts


def shard_facts(job_id: str) -> ShardFacts:
    """Counts GPUs by the driver's library, which opens no CUDA context in this process."""
    return ShardFacts(
        num_gpus=torch.cuda.device_count(),
        cuda_version=torch.version.cuda or "",
        job_id=job_id,
    )
