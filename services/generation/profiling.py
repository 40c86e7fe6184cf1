"""Profiles a generation engine on the device at hand: prefill and decoding steps.

Runs the engine as the service does, with dummy weights: prompts are added, the engine steps
until all have ended. Rollouts of one token are prefills; what longer ones take beyond them are
decoding steps. A tensor degree is emulated by its local work, as in the trainer's profile.
"""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from realloc.core.model import ModelArchitecture
from realloc.cost.profile import Sample, local_architecture
from realloc.cost.ratios import Work
from services.generation.engine import EngineSpec, RolloutRequest
from services.generation.vllm_engine import VllmEngine

_DECODED = 9
"""Tokens of the longer rollouts: a prefill and eight decoding steps."""
_LEAST_REPEATS, _MOST_REPEATS = 3, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTask:
    """What to profile."""

    name: str
    """Of the model in the profile."""
    architecture: ModelArchitecture
    hf_config: str
    """Text of the model's ``config.json``."""
    tensor_degrees: tuple[int, ...]
    element_bytes: int
    sizes: tuple[tuple[int, int], ...]
    """Rows and prompt tokens."""
    seconds: float
    """To spend on measuring, roughly; building engines adds to it."""


def profile_engine(task: EngineTask, say: Callable[[str], None]) -> list[Sample]:
    """Measure every size under every tensor degree, one engine after the other."""
    samples: list[Sample] = []
    each = task.seconds / len(task.tensor_degrees) / len(task.sizes) / 2
    with closing(VllmEngine(name="profile", transfer_host="127.0.0.1")) as engine:
        for tensor in task.tensor_degrees:
            say(f"generation: an engine for tensor {tensor}")
            local = local_architecture(task.architecture, tensor)
            engine.load(_spec(task, local))
            for rows, length in task.sizes:
                say(f"generation: tensor {tensor}, {rows} × {length}")
                prefill = _repeat(engine, local, rows, length, 1, each)
                whole = _repeat(engine, local, rows, length, _DECODED, each)
                steps = (whole - prefill) / (_DECODED - 1)
                context = length + _DECODED / 2
                for work, tokens, seconds in (
                    (Work.PREFILL, float(length), prefill),
                    (Work.DECODE, context, steps),
                ):
                    if seconds <= 0:  # noise was larger than the difference
                        continue
                    samples.append(
                        Sample(
                            work=work,
                            model=task.name,
                            tensor=tensor,
                            element_bytes=task.element_bytes,
                            rows=rows,
                            length=tokens,
                            seconds=seconds,
                        )
                    )
    return samples


def _spec(task: EngineTask, local: ModelArchitecture) -> EngineSpec:
    config: dict[str, Any] = json.loads(task.hf_config)
    config |= {
        "num_attention_heads": local.num_attention_heads,
        "num_key_value_heads": local.num_key_value_heads,
        "head_dim": local.head_dim,
        "intermediate_size": local.intermediate_size,
        "vocab_size": local.vocab_size,
    }
    longest = max(length for _, length in task.sizes) + _DECODED
    tokens = max(rows * (length + _DECODED + 16) for rows, length in task.sizes)
    per_token = 2 * local.num_layers * local.key_value_size * task.element_bytes
    return EngineSpec(
        hf_config=json.dumps(config),
        tensor_parallel=1,
        max_model_len=longest,
        dtype="float32" if task.element_bytes == 4 else "bfloat16",
        kv_cache_bytes=int(1.2 * tokens * per_token) + (16 << 20),
        seed=0,
    )


def _repeat(
    engine: VllmEngine,
    architecture: ModelArchitecture,
    rows: int,
    length: int,
    tokens: int,
    seconds: float,
) -> float:
    """Median seconds of so many rollouts, without the first round."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    for number in range(1 + _MOST_REPEATS):
        taken = rollout_seconds(engine, architecture, rows, length, tokens, number=number)
        if number:
            times.append(taken)
        if len(times) >= _LEAST_REPEATS and time.perf_counter() > deadline:
            break
    return median(times)


def rollout_seconds(
    engine: VllmEngine,
    architecture: ModelArchitecture,
    rows: int,
    length: int,
    tokens: int,
    *,
    number: int = 0,
) -> float:
    """Seconds of so many rollouts of random prompts, from adding them until all have ended.

    Args:
        number: of the round; each has other prompts.
    """
    requests = _requests(architecture, rows, length, tokens, number)
    started = time.perf_counter()
    engine.add(requests)
    left = rows
    while left:
        left -= len(engine.step())
    return time.perf_counter() - started


def _requests(
    architecture: ModelArchitecture, rows: int, length: int, tokens: int, number: int
) -> list[RolloutRequest]:
    """Prompts of random tokens, never twice the same: a prefix cache would spare their work."""
    random = np.random.default_rng([number, rows, length, tokens])
    return [
        RolloutRequest(
            request_id=f"{number}/{tokens}/{row}",
            prompt_tokens=tuple(random.integers(0, architecture.vocab_size, length).tolist()),
            temperature=1.0,
            max_new_tokens=tokens,
            seed=row,
            stop_token_ids=(),
        )
        for row in range(rows)
    ]
