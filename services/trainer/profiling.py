"""Profiles the trainer on the device at hand: layers, head, optimizer, and what surrounds them.

Runs the trainer's own engine on models of few layers with random weights. A tensor degree is
emulated by its local work: the model that has one rank's heads, columns and vocabulary. Numbers
of 16 bits are timed on the same layers, cast; the engine itself trains float32.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from realloc.core.batch import Batch, RaggedArray
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.settings import OptimizerSettings, PpoSettings
from realloc.core.strategy import ParallelStrategy
from realloc.cost.profile import Sample, local_architecture
from realloc.cost.ratios import Work
from realloc.transfer.rendezvous import TransferStore
from services.trainer.engine import CallSettings, JobWorld, ModelSpec
from services.trainer.megatron_engine import MegatronEngine
from services.trainer.megatron_model import MegatronModel
from services.trainer.micro_batches import split_batch
from services.trainer.objectives import objective_of, selection_of
from services.trainer.schedule import run_schedule
from services.trainer.stopwatch import PassTimes, Stopwatch

_MODEL = "profiled"
_LAYERS = 2
_LEAST_REPEATS, _MOST_REPEATS = 3, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerTask:
    """What to profile."""

    name: str
    """Of the model in the profile."""
    architecture: ModelArchitecture
    tensor_degrees: tuple[int, ...]
    element_bytes: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    """Rows and length of each packed batch."""
    seconds: float
    """To spend on measuring, roughly; model building and the first pass of each size add to it."""


def profile_trainer(task: TrainerTask, say: Callable[[str], None]) -> list[Sample]:
    """Measure every part of the task; the engine's process does nothing else meanwhile."""
    samples: list[Sample] = []
    parts = len(task.tensor_degrees) * len(task.element_bytes) * len(task.sizes)
    each = task.seconds / parts
    for tensor in task.tensor_degrees:
        with _built_model(task.architecture, tensor) as (engine, model):
            point = _Point(task=task, tensor=tensor, engine=engine, model=model, seconds=each)
            for element_bytes in sorted(task.element_bytes, reverse=True):
                for rows, length in task.sizes:
                    say(f"trainer: tensor {tensor}, {element_bytes} bytes, {rows} × {length}")
                    samples += point.measure(element_bytes, rows, length)
    return samples


@contextmanager
def _built_model(
    architecture: ModelArchitecture, tensor: int
) -> Iterator[tuple[MegatronEngine, MegatronModel]]:
    engine, store = MegatronEngine(), TransferStore("127.0.0.1")
    layout = Layout(kind=LayoutKind.MEGATRON, strategy=ParallelStrategy(), devices=(0,))
    world = JobWorld(
        job_id="profile",
        rank=0,
        devices=(0,),
        store_host=store.host,
        store_port=store.port,
        timeout_seconds=60.0,
    )
    engine.start_job(world)
    try:
        spec = ModelSpec(
            model_id=_MODEL,
            architecture=replace(local_architecture(architecture, tensor), num_layers=_LAYERS),
            layout=layout,
            checkpoint="",
            seed=0,
            optimizer=OptimizerSettings(),
        )
        engine.create_model(spec)
        yield engine, engine._model(_MODEL)
    finally:
        engine.end_job()
        store.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """One timed call."""

    wall: float
    passes: tuple[PassTimes, ...]
    steps: tuple[float, ...]

    @property
    def frame(self) -> float:
        """What is left of the call without passes and steps."""
        inside = sum(each.seconds for each in self.passes) + sum(self.steps)
        return max(0.0, self.wall - inside)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Point:
    """Measures sizes of batches on one model."""

    task: TrainerTask
    tensor: int
    engine: MegatronEngine
    model: MegatronModel
    seconds: float

    def measure(self, element_bytes: int, rows: int, length: int) -> list[Sample]:
        """All samples of one size."""
        batch = _random_batch(self.model.spec.architecture, rows, length)
        if element_bytes == 4:
            infer = self._repeat(lambda: self._infer(batch))
            train = self._repeat(lambda: self._train(batch))
        else:
            with _cast(self.model):
                infer = self._repeat(lambda: self._run(batch, "logprobs"))
                train = self._repeat(lambda: self._run(batch, "ppo_actor"))

        def sample(work: Work, seconds: float, *, size: tuple[float, float]) -> Sample:
            return Sample(
                work=work,
                model=self.task.name,
                tensor=self.tensor,
                element_bytes=element_bytes,
                rows=size[0],
                length=size[1],
                seconds=seconds,
            )

        whole, selected = (rows, length), (rows, _response(length))
        samples = [
            sample(Work.LAYER_FORWARD, _middle(infer, "layer_forward"), size=whole),
            sample(Work.LAYER_BACKWARD, _middle(train, "layer_backward"), size=whole),
            sample(Work.HEAD_FORWARD, _middle(infer, "head"), size=selected),
            sample(Work.HEAD_TRAIN, _middle(train, "head"), size=selected),
        ]
        if element_bytes == 4:
            parameters = sum(each.numel() for each in self.model.module.parameters())
            step = median(second for call in train for second in call.steps)
            samples += [
                sample(Work.STEP, step, size=(parameters, 1)),
                sample(Work.INFERENCE_FRAME, median(c.frame for c in infer), size=whole),
                sample(Work.TRAIN_FRAME, median(c.frame for c in train), size=whole),
            ]
        return samples

    def _repeat(self, call: Callable[[], _Call]) -> list[_Call]:
        """Calls for half of a size's time, without the first."""
        call()
        calls: list[_Call] = []
        deadline = time.perf_counter() + self.seconds / 2
        while len(calls) < _LEAST_REPEATS or (
            time.perf_counter() < deadline and len(calls) < _MOST_REPEATS
        ):
            calls.append(call())
        return calls

    def _infer(self, batch: Batch) -> _Call:
        settings = _settings("logprobs")
        return self._timed(lambda: self.engine.infer(_MODEL, settings, batch))

    def _train(self, batch: Batch) -> _Call:
        settings = _settings("ppo_actor")
        return self._timed(lambda: self.engine.train(_MODEL, settings, [batch]))

    def _run(self, batch: Batch, loss: str) -> _Call:
        """Passes without the engine around them: for element types that it does not have."""
        settings = _settings(loss)
        objective = objective_of(
            replace(settings, loss="ppo_actor"),
            self.model.spec.architecture,
            self.model.groups.tensor,
        )
        selection = selection_of(settings, has_loss_mask=False)
        micro_batches = split_batch(
            batch, selection, settings.max_tokens_per_micro_batch, self.model.device
        )
        forward_only = loss == "logprobs"

        def on_output(micro_batch: Any, output: Any) -> tuple[Any, None]:
            value, _ = objective.loss(micro_batch, output)
            return value, None

        return self._timed(
            lambda: run_schedule(self.model, micro_batches, on_output, forward_only=forward_only)
        )

    def _timed(self, work: Callable[[], object]) -> _Call:
        with Stopwatch(self.model) as stopwatch:
            _synchronize(self.model.device)
            started = time.perf_counter()
            work()
            _synchronize(self.model.device)
            wall = time.perf_counter() - started
        return _Call(wall=wall, passes=stopwatch.passes(), steps=stopwatch.steps())


@contextmanager
def _cast(model: MegatronModel) -> Iterator[None]:
    """The model's layers in bfloat16, outside its gradient buffers, for as long as the context."""
    wrapped, finalize = model.wrapped, model.config.finalize_model_grads_func
    kept = {name: parameter.data for name, parameter in model.module.named_parameters()}
    model.wrapped, model.config.finalize_model_grads_func = model.module, None
    for parameter in model.module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for name, parameter in model.module.named_parameters():
            parameter.grad = None
            parameter.data = kept[name]
        model.wrapped, model.config.finalize_model_grads_func = wrapped, finalize


def _middle(calls: Sequence[_Call], part: str) -> float:
    return median(getattr(each, part) for call in calls for each in call.passes)


def _settings(loss: str) -> CallSettings:
    return CallSettings(
        loss=loss,
        temperature=1.0,
        kl_coefficient=0.1,
        max_tokens_per_micro_batch=1 << 30,
        ppo=PpoSettings(),
    )


def _response(length: int) -> int:
    return max(1, length // 2)


def _random_batch(architecture: ModelArchitecture, rows: int, length: int) -> Batch:
    """Rows with all that PPO's actor needs, half prompt and half response."""
    random, response = np.random.default_rng(0), _response(length)

    def rows_of(make: Callable[[], Any], dtype: str) -> RaggedArray:
        return RaggedArray.from_rows([make() for _ in range(rows)], dtype)

    def per_token() -> Any:
        return random.standard_normal(response) - 3.0

    return Batch(
        fields={
            "tokens": rows_of(lambda: random.integers(0, architecture.vocab_size, length), "int32"),
            "prompt_length": rows_of(lambda: np.array([length - response]), "int32"),
            "reward": rows_of(lambda: random.standard_normal(1), "float32"),
            **{
                name: rows_of(per_token, "float32")
                for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns")
            },
        }
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
