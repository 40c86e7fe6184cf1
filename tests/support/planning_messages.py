"""A job to plan, and the request for it."""

import json
from dataclasses import replace
from typing import Any

from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.api.scheduler.v1 import experiment_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.experiment import DataSettings, Experiment, ModelSettings
from realloc.core.mesh import Cluster
from realloc.core.model import ModelArchitecture
from realloc.core.settings import GenerationSettings, PpoSettings
from realloc.wire.convert import to_proto

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
}
MODEL = ModelArchitecture.from_hf_config(CONFIG)
CLUSTER = Cluster(
    num_nodes=1, devices_per_node=4, device_kind="H100", device_memory_bytes=80 * 10**9
)
EXPERIMENT = Experiment(
    name="plan",
    algorithm="ppo",
    iterations=1,
    actor=ModelSettings(checkpoint="a"),
    # 63 rollouts divide neither into mini-batches nor by data ranks: trainers take them.
    data=DataSettings(path="p", batch_size=63),
    generation=GenerationSettings(max_new_tokens=128),
    ppo=PpoSettings(mini_batches=2),
    dtype="bfloat16",
)


def planning_message(
    seconds: float = 0.5, *, nodes: int = 1, **fields: Any
) -> pb.SearchPlanRequest:
    """What the scheduler asks for on behalf of the job."""
    return pb.SearchPlanRequest(
        experiment=to_proto(EXPERIMENT, experiment_pb2.Experiment),
        models=[
            pb.PlannedModel(model_id=name, hf_config=json.dumps(CONFIG), head=head)
            for name, head in (("actor", "HEAD_LM"), ("ref", "HEAD_LM"), ("critic", "HEAD_VALUE"))
        ],
        cluster=to_proto(replace(CLUSTER, num_nodes=nodes), types_pb2.Cluster),
        seconds=seconds,
        mean_prompt_tokens=128.0,
        **fields,
    )
