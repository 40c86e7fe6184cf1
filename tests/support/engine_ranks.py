"""What the tests of the trainer engine share: an engine in each rank process, and batches."""

import json
import os
import uuid
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from realloc.core.batch import Batch, RaggedArray
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head, ModelArchitecture
from realloc.core.settings import OptimizerSettings, PpoSettings
from realloc.core.strategy import ParallelStrategy
from realloc.transfer.rendezvous import TransferStore
from services.trainer.engine import CallSettings, JobWorld, ModelSpec, TrainResult
from tests.support.rank_processes import RankProcesses

OPTIMIZER = OptimizerSettings(learning_rate=1e-3, epsilon=1e-4, max_grad_norm=1.0)
"""A large epsilon: with 1e-8 Adam turns rounding of tiny gradients into whole steps."""


CALL_SECONDS = 120.0

HELD: dict[str, Any] = {}
"""What a rank process keeps between calls: its engine."""


class EngineRanks:
    """Rank processes with an engine each; started once per test module."""

    def __init__(self, num_ranks: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # the ranks share few cores
        self._ranks = RankProcesses(num_ranks)
        self.store = TransferStore("127.0.0.1")

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method on the first ``len(arguments)`` ranks, each with its own arguments."""
        calls = [(method, *own) for own in arguments]
        return self._ranks.run(call_engine, calls, timeout_seconds=CALL_SECONDS)

    def all(self, num_ranks: int, method: str, *arguments: Any) -> list[Any]:
        """Call a method on the first ranks with equal arguments."""
        return self.each(method, [arguments] * num_ranks)

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run function(engine, *arguments[r]) on rank r."""
        calls = [(function, *own) for own in arguments]
        return self._ranks.run(with_engine, calls, timeout_seconds=CALL_SECONDS)

    def __enter__(self) -> "EngineRanks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._ranks.processes:
            process.kill()  # they hold nothing, and torch takes seconds to leave
        self._ranks.close()
        self.store.close()


def engine() -> Any:
    """The engine of this rank process, made at the first call."""
    if "engine" not in HELD:
        import torch

        from services.trainer.megatron_engine import MegatronEngine

        torch.set_num_threads(1)
        HELD["engine"] = MegatronEngine()
    return HELD["engine"]


def call_engine(method: str, *arguments: Any) -> Any:
    """Runs in a rank process."""
    return getattr(engine(), method)(*arguments)


def with_engine(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs in a rank process."""
    return function(engine(), *arguments)


def weights_of(engine: Any, model_id: str) -> dict[str, np.ndarray]:
    """Copies of a rank's parameters, which must lie contiguous."""
    parameters = engine.parameters(model_id)
    assert all(parameter.is_contiguous() for parameter in parameters.values())
    return {name: parameter.clone().numpy() for name, parameter in parameters.items()}


def logits_of(engine: Any, model_id: str, batch: Batch) -> list[np.ndarray]:
    """A tensor rank's logits that predict the responses, one array per micro-batch."""
    import torch

    from services.trainer.micro_batches import Selection, split_batch
    from services.trainer.schedule import run_schedule

    model = engine._model(model_id)
    micro_batches = split_batch(batch, Selection.RESPONSE, 10_000, model.device)
    found = run_schedule(
        model, micro_batches, lambda _, out: (torch.zeros(()), out), forward_only=True
    )
    return [logits.numpy() for logits in found]


def start_job(ranks: EngineRanks, num_ranks: int, devices: Sequence[int] | None = None) -> None:
    """Form a world of the first ranks on the devices 0, 1, …"""
    job_id = uuid.uuid4().hex
    worlds = [
        JobWorld(
            job_id=job_id,
            run_id="first",
            rank=rank,
            devices=tuple(devices or range(num_ranks)),
            store_host=ranks.store.host,
            store_port=ranks.store.port,
            timeout_seconds=60,
        )
        for rank in range(num_ranks)
    ]
    ranks.each("start_job", [(world,) for world in worlds])


def model_spec(
    model_id: str,
    folder: Path,
    strategy: str,
    *,
    head: Head = Head.LM,
    trains: bool = True,
    first_device: int = 0,
    **more: Any,
) -> ModelSpec:
    """A model from a checkpoint, over consecutive devices."""
    parsed = ParallelStrategy.parse(strategy)
    config = json.loads((folder / "config.json").read_text())
    return ModelSpec(
        model_id=model_id,
        architecture=ModelArchitecture.from_hf_config(config).with_head(head),
        layout=Layout(
            kind=LayoutKind.MEGATRON,
            strategy=parsed,
            devices=tuple(range(first_device, first_device + parsed.num_ranks)),
        ),
        checkpoint=more.pop("checkpoint", str(folder)),
        seed=7,
        optimizer=OPTIMIZER if trains else None,
        **more,
    )


def call_settings(loss: str, **more: Any) -> CallSettings:
    return CallSettings(
        loss=loss,
        temperature=more.pop("temperature", 1.0),
        kl_coefficient=more.pop("kl_coefficient", 0.1),
        max_tokens_per_micro_batch=more.pop("max_tokens", 64),
        ppo=PpoSettings(**more),
    )


def random_batch(num_rows: int, seed: int = 0, vocab_size: int = 259) -> Batch:
    """Rows of 3 to 30 tokens with all fields that PPO needs."""
    random = np.random.default_rng(seed)
    prompts = random.integers(1, 12, num_rows)
    responses = random.integers(1, 18, num_rows)

    def per_token(scale: float, shift: float = 0.0) -> list[np.ndarray]:
        return [shift + scale * random.standard_normal(n) for n in responses]

    logprobs = per_token(0.5, -3.0)
    rows = {
        "tokens": [
            random.integers(0, vocab_size, p + r) for p, r in zip(prompts, responses, strict=True)
        ],
        "prompt_length": [np.array([p]) for p in prompts],
        "loss_mask": [
            random.integers(0, 2, p + r) for p, r in zip(prompts, responses, strict=True)
        ],
        "logprobs": logprobs,
        "ref_logprobs": [x + 0.1 * random.standard_normal(len(x)) for x in logprobs],
        "values": per_token(0.3),
        "reward": [random.standard_normal(1) for _ in responses],
    }
    integers = {"tokens", "prompt_length"}
    return Batch(
        fields={
            name: RaggedArray.from_rows(values, "int32" if name in integers else "float32")
            for name, values in rows.items()
        }
    )


def spread(batch: Batch, data: int) -> list[Batch]:
    """A share of the rows for each data rank, of uneven sizes."""
    first = max(batch.num_rows * 2 // (3 * data), 1)
    bounds = [0, *(first * (rank + 1) for rank in range(data - 1)), batch.num_rows]
    shares = [batch.take(range(a, b)) for a, b in pairwise(bounds)]
    return [share if share.num_rows else Batch(fields={}) for share in shares]


def per_rank(spec: ModelSpec, shares: Sequence[Any]) -> list[Any]:
    """The share of the data rank that each rank of the layout belongs to."""
    strategy = spec.layout.strategy
    return [shares[strategy.coordinate(rank).data] for rank in range(strategy.num_ranks)]


def infer(ranks: EngineRanks, spec: ModelSpec, settings: CallSettings, batch: Batch) -> Batch:
    """Run a batch spread over the data ranks; the result in the batch's order."""
    shares = per_rank(spec, spread(batch, spec.layout.strategy.data))
    answers = ranks.each("infer", [(spec.model_id, settings, share) for share in shares])
    found = [answer for answer in answers if answer is not None]
    assert len(found) == spec.layout.strategy.data
    return Batch.concatenate(found)


def train(
    ranks: EngineRanks,
    spec: ModelSpec,
    settings: CallSettings,
    mini_batches: Sequence[Batch],
) -> TrainResult:
    """Train on mini-batches spread over the data ranks."""
    data = spec.layout.strategy.data
    shares = [[spread(batch, data)[rank] for batch in mini_batches] for rank in range(data)]
    arguments = [(spec.model_id, settings, share) for share in per_rank(spec, shares)]
    results = ranks.each("train", arguments)
    assert all(result == results[0] for result in results)
    return results[0]


def whole_weights(ranks: EngineRanks, spec: ModelSpec) -> dict[str, np.ndarray]:
    """All canonical tensors, put together from every rank's parameters."""
    from realloc.reallocation.families import canonical_tensors
    from realloc.reallocation.layouts.provider import local_parameters

    tensors = canonical_tensors(spec.architecture)
    whole = [np.full(tensor.num_elements, np.nan, np.float32) for tensor in tensors]
    num_ranks = spec.layout.strategy.num_ranks
    for rank, weights in enumerate(ranks.run(weights_of, [(spec.model_id,)] * num_ranks)):
        layout = local_parameters(spec.architecture, spec.layout, rank)
        blocks = layout.blocks
        for i in range(len(blocks)):
            flat = weights[layout.parameters[blocks.tensor[i]].name].reshape(-1)
            for row in range(blocks.rows[i]):
                at = blocks.canonical_start[i] + row * blocks.canonical_stride[i]
                start = blocks.start[i] + row * blocks.row_stride[i]
                piece = flat[start : start + blocks.cols[i]]
                target = whole[blocks.canonical[i]][at : at + blocks.cols[i]]
                known = ~np.isnan(target)
                np.testing.assert_array_equal(target[known], piece[known])
                target[:] = piece
    return {tensor.name: x.reshape(tensor.shape) for tensor, x in zip(tensors, whole, strict=True)}
