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
from torch import Tensor

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
from services.trainer.micro_batches import MicroBatch, Selection, split_batch
from services.trainer.objectives import TokenLogProbs, objective_of
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
        local = local_architecture(task.architecture, tensor)
        with TrainerModel.built(replace(local, num_layers=_LAYERS)) as built:
            point = _Point(
                task=task,
                tensor=tensor,
                engine=built.engine,
                model=built.model,
                seconds=each,
            )
            for element_bytes in sorted(task.element_bytes, reverse=True):
                for rows, length in task.sizes:
                    say(f"trainer: tensor {tensor}, {element_bytes} bytes, {rows} × {length}")
                    samples += point.measure(element_bytes, rows, length)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainerModel:
    """A trainable model of random weights, alone in the world of its engine."""

    engine: MegatronEngine
    model: MegatronModel
    model_id: str = _MODEL

    @staticmethod
    @contextmanager
    def built(architecture: ModelArchitecture) -> Iterator["TrainerModel"]:
        """Build it; its engine forgets it with the context."""
        engine, store = MegatronEngine(), TransferStore("127.0.0.1")
        world = JobWorld(
            job_id="profile",
            run_id="profile",
            rank=0,
            devices=(0,),
            store_host=store.host,
            store_port=store.port,
            timeout_seconds=60.0,
        )
        engine.start_job(world)
        try:
            engine.create_model(_model_spec(architecture))
            yield TrainerModel(engine=engine, model=engine._model(_MODEL))
        finally:
            engine.end_job()
            store.close()

    def random_batch(self, rows: int, length: int) -> Batch:
        """Rows with all that PPO's actor needs, half prompt and half response."""
        return _random_batch(self.model.spec.architecture, rows, length)


def _model_spec(architecture: ModelArchitecture) -> ModelSpec:
    return ModelSpec(
        model_id=_MODEL,
        architecture=architecture,
        layout=Layout(kind=LayoutKind.MEGATRON, strategy=ParallelStrategy(), devices=(0,)),
        checkpoint="",
        seed=0,
        optimizer=OptimizerSettings(),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """One timed call."""

    wall: float
    passes: tuple[PassTimes, ...]
    steps: tuple[float, ...]

    @property
    def inside(self) -> float:
        """Of passes and steps."""
        return min(self.wall, sum(each.seconds for each in self.passes) + sum(self.steps))


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
            infer = self._repeat(lambda: self._passes(batch, backward=False))
            train = self._repeat(lambda: self._train(batch))
        else:
            with _cast(self.model):
                infer = self._repeat(lambda: self._passes(batch, backward=False))
                train = self._repeat(lambda: self._passes(batch, backward=True))

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
            inside = median(call.inside for call in infer)
            whole_call = median(call.wall for call in self._repeat(lambda: self._infer(batch)))
            samples += [
                sample(Work.STEP, step, size=(parameters, 1)),
                sample(Work.INFERENCE_FRAME, max(0.0, whole_call - inside), size=selected),
                sample(Work.TRAIN_FRAME, median(c.wall - c.inside for c in train), size=selected),
            ]
        # A difference of times that noise made nothing says nothing.
        return [each for each in samples if each.seconds > 0]

    def _repeat(self, call: Callable[[], _Call]) -> list[_Call]:
        """Calls for a third of a size's time, without the first."""
        call()
        calls: list[_Call] = []
        deadline = time.perf_counter() + self.seconds / 3
        while len(calls) < _LEAST_REPEATS or (
            time.perf_counter() < deadline and len(calls) < _MOST_REPEATS
        ):
            calls.append(call())
        return calls

    def _infer(self, batch: Batch) -> _Call:
        settings = settings_of("logprobs")
        return self._timed(lambda _: self.engine.infer(_MODEL, settings, batch))

    def _train(self, batch: Batch) -> _Call:
        settings = settings_of("ppo_actor")
        return self._timed(lambda _: self.engine.train(_MODEL, settings, [batch]))

    def _passes(self, batch: Batch, *, backward: bool) -> _Call:
        """One micro-batch without the engine around it: for element types that it lacks, and to
        see where its log-probabilities end."""
        settings = settings_of("ppo_actor")
        spec, groups = self.model.spec, self.model.groups
        objective = objective_of(settings, spec.architecture, groups.tensor)
        micro_batches = split_batch(
            batch, Selection.RESPONSE, settings.max_tokens_per_micro_batch, self.model.device
        )
        logprobs = TokenLogProbs(
            vocab_size=spec.architecture.vocab_size, temperature=1.0, group=groups.tensor
        )

        def work(stopwatch: Stopwatch) -> None:
            def on_output(micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, None]:
                if backward:
                    return objective.loss(micro_batch, output_NC)[0], None
                result_N = logprobs(micro_batch, output_NC)
                stopwatch.set_output()
                return result_N.new_zeros(()), None

            run_schedule(self.model, micro_batches, on_output, forward_only=not backward)

        return self._timed(work)

    def _timed(self, work: Callable[[Stopwatch], object]) -> _Call:
        with Stopwatch(self.model) as stopwatch:
            _synchronize(self.model.device)
            started = time.perf_counter()
            work(stopwatch)
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
    seconds: list[float] = [getattr(each, part) for call in calls for each in call.passes]
    return median(seconds)


def settings_of(loss: str) -> CallSettings:
    """Settings of a call whose rows are one micro-batch."""
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
