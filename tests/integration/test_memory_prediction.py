"""Predicted bytes against what the processes of a real trainer and a real engine grow by."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, Workload, estimate_call
from realloc.cost.hardware import hardware_of
from realloc.dataflow.graph import CallKind

CPU = hardware_of("cpu")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "intermediate_size": 2048,
    "vocab_size": 8192,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
"""50 million parameters, 201 MB: what is predicted stands out of what moves by itself."""
TINY = CONFIG | {"num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 320}
ROWS, LENGTH = 8, 128
CACHE_BYTES = 96 << 20


def architecture(config: dict[str, Any]) -> ModelArchitecture:
    return ModelArchitecture.from_hf_config(config)


def predicted(kind: CallKind, *, response: int, prompt: int) -> CallCost:
    work = Workload(num_rows=ROWS, prompt_tokens=prompt, response_tokens=response, element_bytes=4)
    return estimate_call(kind, architecture(CONFIG), ParallelStrategy(), work, CPU)


def in_own_process(function: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run a function in a fresh process: its high-water mark is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function).result(timeout=240)


def status_bytes(name: str) -> int:
    """``VmRSS``, or ``VmHWM``, the high-water mark."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def reset_high_water() -> None:
    """Set the high-water mark to what the process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def trainer_growth() -> dict[str, float]:
    """Peak bytes of an inference and of a train call beyond what a tiny model leaves behind."""
    import torch

    torch.set_num_threads(1)
    from services.trainer.profiling import TrainerModel, settings_of

    def call(model: TrainerModel, loss: str, rows: int) -> None:
        batch = model.random_batch(rows, LENGTH)
        if loss == "logprobs":
            model.engine.infer(model.model_id, settings_of(loss), batch)
        else:
            model.engine.train(model.model_id, settings_of(loss), [batch])

    with TrainerModel.built(architecture(TINY)) as tiny:
        call(tiny, "logprobs", 2)
        call(tiny, "ppo_actor", 2)
    process = status_bytes("VmRSS")
    found = {"process": float(process)}
    with TrainerModel.built(architecture(CONFIG)) as model:
        call(model, "ppo_actor", 1)  # Adam's moments come with the first step
        for loss in ("logprobs", "ppo_actor"):
            reset_high_water()
            call(model, loss, ROWS)
            found[loss] = float(status_bytes("VmHWM") - process)
    return found


def engine_growth() -> dict[str, float]:
    """Peak bytes of a loaded engine while it generates, beyond those of a tiny one."""
    from services.generation.vllm_engine import prepare_environment
    from services.trainer.host_memory import return_freed_memory

    prepare_environment()
    return_freed_memory()
    from services.generation.engine import EngineSpec
    from services.generation.profiling import rollout_seconds
    from services.generation.vllm_engine import VllmEngine

    engine = VllmEngine(name="memory", transfer_host="127.0.0.1")

    def generate(config: dict[str, Any], cache_bytes: int, rows: int) -> None:
        spec = EngineSpec(
            hf_config=json.dumps(config),
            tensor_parallel=1,
            max_model_len=LENGTH + 8,
            dtype="float32",
            kv_cache_bytes=cache_bytes,
            seed=0,
        )
        engine.load(spec)
        rollout_seconds(engine, architecture(config), rows, LENGTH, 4)

    generate(TINY, 8 << 20, 2)
    process = status_bytes("VmRSS")
    reset_high_water()
    generate(CONFIG, CACHE_BYTES, ROWS)
    growth = float(status_bytes("VmHWM") - process)
    engine.close()
    return {"process": float(process), "generate": growth}


@pytest.fixture(scope="module")
def trainer() -> dict[str, float]:
    return in_own_process(trainer_growth)


@pytest.mark.parametrize(
    ("kind", "call"), [(CallKind.TRAIN, "ppo_actor"), (CallKind.INFERENCE, "logprobs")]
)
def test_a_trainers_peak_is_predicted(trainer: dict[str, float], kind: CallKind, call: str) -> None:
    """Weights, gradients, moments and activations: within 10 % of the growth of the process."""
    train = predicted(CallKind.TRAIN, response=LENGTH // 2, prompt=LENGTH // 2)
    own = predicted(kind, response=LENGTH // 2, prompt=LENGTH // 2)
    # The trainable model stays while it scores.
    assert train.resident_bytes + own.active_bytes == pytest.approx(trainer[call], rel=0.10)


def test_an_engines_peak_is_predicted() -> None:
    """Weights, the cache that it was given, a prefill's activations: within 10 %."""
    engine = in_own_process(engine_growth)
    parts = predicted(CallKind.GENERATE, response=4, prompt=LENGTH).parts
    # No weights arrive: there is no shadow; the cache is allocated whole.
    parts = replace(parts, shadow=0, cache=CACHE_BYTES)
    assert parts.total == pytest.approx(engine["generate"], rel=0.10)
    assert engine["process"] == pytest.approx(CPU.engine_process_bytes, rel=0.15)


def test_a_trainer_process_is_as_large_as_the_preset_says(trainer: dict[str, float]) -> None:
    """What stands beside the tensors: interpreter, torch, Megatron-core."""
    assert trainer["process"] == pytest.approx(CPU.trainer_process_bytes, rel=0.15)
