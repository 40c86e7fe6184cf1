"""Measures the peak memory of trainer processes against what the cost model predicts.

    PYTHONPATH=common:. python -m tools.bench.memory

Per case fresh processes, one per rank of the strategy. What is compared is the growth of a
process's high-water mark over what a tiny model leaves behind, during a PPO step that is not the
first (Adam's moments come with the first); the largest of the ranks counts, as a plan counts the
fullest device.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realloc.core.batch import Batch, RaggedArray
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.settings import OptimizerSettings
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, Workload, estimate_call
from realloc.cost.choices import CallChoices
from realloc.cost.hardware import hardware_of
from realloc.dataflow.graph import CallKind
from services.trainer.engine import ModelSpec
from tests.support.engine_ranks import EngineRanks, call_settings, per_rank, start_job

ROWS, LENGTH = 8, 128
LLAMA = ModelArchitecture(
    family="llama",
    num_layers=6,
    hidden_size=768,
    intermediate_size=2048,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=8192,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
DEEP = replace(LLAMA, num_layers=16, hidden_size=512, intermediate_size=1408, num_attention_heads=8)
VOCABULARY = replace(LLAMA, num_layers=4, hidden_size=512, num_attention_heads=8, vocab_size=49152)
TINY = replace(LLAMA, num_layers=2, intermediate_size=128, vocab_size=320)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model on the ranks of a strategy."""

    name: str
    model: ModelArchitecture
    strategy: str
    recompute: bool = False


CASES = tuple(
    Case(name=name, model=model, strategy=strategy, recompute=recompute)
    for name, model, layouts in (
        ("6 layers of 768", LLAMA, (("d1t1p1", False), ("d1t1p1", True), ("d1t2p1", False))),
        ("16 layers of 512", DEEP, (("d1t1p1", False), ("d1t1p2", False), ("d2t1p1", False))),
        ("4 layers, vocabulary of 49,152", VOCABULARY, (("d1t1p1", False), ("d1t2p1", False))),
    )
    for strategy, recompute in layouts
)


def status_bytes(engine: Any, name: str) -> int:
    """``VmRSS``, or ``VmHWM``, the high-water mark; runs in a rank process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def reset_high_water(engine: Any) -> None:
    """Set the high-water mark to what the rank process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def random_batch(model: ModelArchitecture, rows: int) -> Batch:
    """Rows with all that PPO's actor needs, half prompt and half response."""
    random, response = np.random.default_rng(0), LENGTH // 2
    tokens = [random.integers(0, model.vocab_size, LENGTH) for _ in range(rows)]
    per_token = [random.standard_normal(response) - 3.0 for _ in range(rows)]
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    return Batch(
        fields={
            "tokens": RaggedArray.from_rows(tokens, "int32"),
            "prompt_length": RaggedArray.from_rows([np.array([response])] * rows, "int32"),
            "reward": RaggedArray.from_rows([np.array([1.0])] * rows, "float32"),
            **{name: RaggedArray.from_rows(per_token, "float32") for name in names},
        }
    )


def spec(model: ModelArchitecture, case: Case, model_id: str) -> ModelSpec:
    """A model that trains, from random weights."""
    strategy = ParallelStrategy.parse(case.strategy)
    return ModelSpec(
        model_id=model_id,
        architecture=model,
        layout=Layout(
            kind=LayoutKind.MEGATRON,
            strategy=strategy,
            devices=tuple(range(strategy.num_ranks)),
        ),
        checkpoint="",
        seed=0,
        optimizer=OptimizerSettings(),
        recompute=case.recompute,
    )


def train(ranks: EngineRanks, built: ModelSpec, rows: int) -> None:
    share = random_batch(built.architecture, rows // built.layout.strategy.data)
    shares = [share] * built.layout.strategy.data
    settings = call_settings("ppo_actor", max_tokens=ROWS * LENGTH)
    arguments = [(built.model_id, settings, [share]) for share in per_rank(built, shares)]
    ranks.each("train", arguments)


def measured_bytes(case: Case) -> int:
    """Growth of the largest rank."""
    num_ranks = ParallelStrategy.parse(case.strategy).num_ranks
    nothing: Sequence[tuple[Any, ...]] = [()] * num_ranks
    with EngineRanks(num_ranks) as ranks:
        start_job(ranks, num_ranks)
        tiny, model = spec(TINY, case, "tiny"), spec(case.model, case, "model")
        ranks.all(num_ranks, "create_model", tiny)
        train(ranks, tiny, 2 * num_ranks)
        before = ranks.run(status_bytes, [("VmRSS",)] * num_ranks)
        ranks.all(num_ranks, "create_model", model)
        train(ranks, model, num_ranks)
        ranks.run(reset_high_water, nothing)
        train(ranks, model, ROWS)
        after = ranks.run(status_bytes, [("VmHWM",)] * num_ranks)
    return max(high - low for high, low in zip(after, before, strict=True))


def predicted(case: Case) -> CallCost:
    work = Workload(
        num_rows=ROWS,
        prompt_tokens=LENGTH // 2,
        response_tokens=LENGTH // 2,
        element_bytes=4,
        max_tokens_per_micro_batch=ROWS * LENGTH,
    )
    return estimate_call(
        CallKind.TRAIN,
        case.model,
        ParallelStrategy.parse(case.strategy),
        work,
        hardware_of("cpu"),
        choices=CallChoices(recompute=case.recompute),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, torch {torch.__version__}; "
        f"a PPO step on {ROWS} rows of {LENGTH} tokens, float32, MB\n"
    )
    print("| model | strategy | measured | predicted | |\n|---|---|---|---|---|")
    for case in CASES:
        peak, cost = measured_bytes(case), predicted(case).peak_bytes
        layout = f"{case.strategy}{', recomputed' if case.recompute else ''}"
        print(
            f"| {case.name} | {layout} | {peak / 1e6:,.0f} | {cost / 1e6:,.0f} "
            f"| {cost / peak - 1:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
