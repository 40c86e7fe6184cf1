"""One iteration: the calls of the dataflow graph, each as soon as its inputs are there.

    rows of the prompt file → generate → inference → train → new weight versions

A model that generates is reallocated to its generation layout once per weight version: from the
moment that its train call has ended, while other calls go on. The runner sees references and
numbers only.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.data_file import DataFile
from realloc.core.experiment import Experiment
from realloc.core.job import IterationReport, ReallocationReport, StageReport
from realloc.core.kl_controller import KlController
from realloc.core.plan import ExecutionPlan
from realloc.core.settings import GenerationSettings
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall
from realloc.dataflow.partition import balanced_partition, iteration_rows, mini_batch_rows
from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.spans import Attributes, record
from realloc.wire.convert import to_proto
from services.scheduler.columns import Columns
from services.scheduler.function_calls import CallOutcome, FunctionCalls, Progress
from services.scheduler.together import together


class Reallocator(Protocol):
    """Brings a model's weights to its generation layout."""

    def start(self, model_id: str, weight_version: int) -> None:
        """Begin to reallocate a version that was just made, beside all other calls."""
        ...

    async def bring(self, model_id: str, weight_version: int) -> ReallocationReport | None:
        """Reallocate where the layout does not have this version yet; None where it has."""
        ...


class Spans(Protocol):
    """Opens spans of the job's trace."""

    def iteration(self, iteration: int) -> AbstractContextManager[None]: ...

    def call(self, call: FunctionCall, iteration: int) -> AbstractContextManager[None]: ...


@dataclass(slots=True)
class IterationState:
    """What the calls of one iteration have produced so far."""

    iteration: int
    columns: Columns
    outcomes: dict[str, CallOutcome] = field(default_factory=dict)
    reallocations: list[ReallocationReport] = field(default_factory=list)


class IterationRunner:
    """Runs iterations of one job, one after the other."""

    def __init__(
        self,
        *,
        experiment: Experiment,
        graph: DataflowGraph,
        plan: ExecutionPlan,
        data: DataFile,
        calls: FunctionCalls,
        reallocator: Reallocator | None,
        spans: Spans,
        progress: Progress,
        kl_controller: KlController,
    ) -> None:
        self._experiment = experiment
        self._graph = graph
        self._plan = plan
        self._data = data
        self._calls = calls
        self._reallocator = reallocator
        self._spans = spans
        self._progress = progress
        self._kl_controller = kl_controller
        self.weight_versions: dict[str, int] = {model.model_id: 0 for model in graph.models}

    @property
    def kl_coefficient(self) -> float:
        """Weight of the KL penalty in the iteration to come."""
        return self._kl_controller.coefficient

    async def run(self, iteration: int) -> IterationReport:
        """Run every call of the graph and report what they measured."""
        started = time.monotonic()
        rows = iteration_rows(
            self._data.num_rows,
            self._experiment.data.batch_size,
            iteration,
            self._experiment.seed,
        )
        samples = self._experiment.generation.samples_per_prompt
        generates = any(call.kind is CallKind.GENERATE for call in self._graph.calls)
        state = IterationState(iteration, Columns(len(rows) * (samples if generates else 1)))
        done = {call.name: asyncio.Event() for call in self._active_calls(iteration)}
        with self._spans.iteration(iteration):
            await together(
                self._run_when_ready(call, state, rows, done)
                for call in self._active_calls(iteration)
            )
        return self._report(state, time.monotonic() - started)

    async def evaluate(self, data: DataFile) -> CallOutcome:
        """Greedy decoding of every row of a held-out file with the newest weights."""
        call = self._graph.evaluation
        assert call is not None
        assert self._reallocator is not None
        await self._reallocator.bring(call.model, self.weight_versions[call.model])
        settings = GenerationSettings(
            temperature=0.0, max_new_tokens=self._experiment.generation.max_new_tokens
        )
        return await self._calls.generate(
            call,
            self._plan.placement(call.name),
            data=data,
            rows=range(data.num_rows),
            settings=settings,
            columns=Columns(data.num_rows),
            iteration=0,
            seed=self._experiment.seed,
            weight_version=self.weight_versions[call.model],
            progress=self._progress,
        )

    def _active_calls(self, iteration: int) -> tuple[FunctionCall, ...]:
        """All calls, but for the actor's training while the critic warms up."""
        if iteration > self._experiment.ppo.critic_warmup_iterations:
            return self._graph.calls
        return tuple(call for call in self._graph.calls if call.work != "ppo_actor")

    async def _run_when_ready(
        self,
        call: FunctionCall,
        state: IterationState,
        rows: Sequence[int],
        done: Mapping[str, asyncio.Event],
    ) -> None:
        for before in self._graph.predecessors(call):
            await done[before.name].wait()
        with self._spans.call(call, state.iteration):
            self._progress(call.name)
            outcome = await self._run_call(call, state, rows)
        state.outcomes[call.name] = outcome
        attributes: Attributes = {Attribute.CALL: call.name, Attribute.MODEL_ID: call.model}
        record(Metric.TOKENS, outcome.num_tokens, attributes)
        done[call.name].set()
        if call.kind is CallKind.TRAIN:
            self._start_reallocation(call.model, state.iteration)

    async def _run_call(
        self, call: FunctionCall, state: IterationState, rows: Sequence[int]
    ) -> CallOutcome:
        placement = self._plan.placement(call.name)
        if call.kind is CallKind.GENERATE:
            version = self.weight_versions[call.model]
            assert self._reallocator is not None, "a graph that generates has a reallocator"
            moved = await self._reallocator.bring(call.model, version)
            if moved is not None:
                state.reallocations.append(moved)
            return await self._calls.generate(
                call,
                placement,
                data=self._data,
                rows=rows,
                settings=self._experiment.generation,
                columns=state.columns,
                iteration=state.iteration,
                seed=self._experiment.seed * 1_000_003 + state.iteration,
                weight_version=version,
                progress=self._progress,
            )
        if call.kind is CallKind.INFERENCE:
            return await self._calls.infer(
                call,
                placement,
                columns=state.columns,
                settings=self._settings(call),
                iteration=state.iteration,
            )
        outcome = await self._calls.train(
            call,
            placement,
            mini_batches=self._mini_batches(call, state, rows),
            settings=self._settings(call),
            iteration=state.iteration,
        )
        self.weight_versions[call.model] = outcome.weight_version
        return outcome

    def _start_reallocation(self, model_id: str, iteration: int) -> None:
        """Send a new version to where the model generates, beside the calls that still run."""
        if self._reallocator is not None and self._generates_after(model_id, iteration):
            self._reallocator.start(model_id, self.weight_versions[model_id])

    def _generates_after(self, model_id: str, iteration: int) -> bool:
        """True where the version that an iteration makes of a model will generate."""
        evaluation = self._graph.evaluation
        evaluated = evaluation is not None and evaluation.model == model_id
        if evaluated and self._experiment.evaluates_after(iteration):
            return True
        generates = any(
            call.kind is CallKind.GENERATE and call.model == model_id for call in self._graph.calls
        )
        return generates and iteration < self._experiment.iterations

    def _settings(self, call: FunctionCall) -> trainer_pb2.CallSettings:
        return trainer_pb2.CallSettings(
            loss=call.work,
            temperature=self._experiment.generation.temperature if call.inputs else 1.0,
            kl_coefficient=self._kl_controller.coefficient,
            max_tokens_per_micro_batch=self._experiment.max_tokens_per_micro_batch,
            ppo=to_proto(self._experiment.ppo, types_pb2.PpoSettings),
        )

    def _mini_batches(
        self, call: FunctionCall, state: IterationState, rows: Sequence[int]
    ) -> list[list[trainer_pb2.CallInput]]:
        """Per mini-batch the input of each data-parallel rank of the call."""
        num_ranks = self._plan.placement(call.name).strategy.data
        if not call.inputs:
            parts = balanced_partition([self._data.lengths[row] for row in rows], num_ranks)
            return [[self._data_input([rows[index] for index in part]) for part in parts]]
        ppo, samples = self._experiment.ppo, self._experiment.generation.samples_per_prompt
        batches = mini_batch_rows(
            state.columns.num_rows,
            ppo.mini_batches,
            ppo.epochs,
            samples,
            self._experiment.seed + state.iteration,
        )
        inputs = []
        for batch in batches:
            lengths = [state.columns.lengths[row] for row in batch]
            parts = balanced_partition(lengths, num_ranks, samples)
            inputs.append(
                [
                    state.columns.call_input(call.inputs, [batch[index] for index in part])
                    for part in parts
                ]
            )
        return inputs

    def _data_input(self, rows: Sequence[int]) -> trainer_pb2.CallInput:
        data = types_pb2.DataRows(path=self._data.path, rows=rows)
        return trainer_pb2.CallInput(data=data)

    def _report(self, state: IterationState, seconds: float) -> IterationReport:
        metrics: dict[str, float] = {}
        for call in self._graph.calls:
            if call.name in state.outcomes:
                metrics |= _metrics(call, state.outcomes[call.name])
        if "actor/kl_to_ref" in metrics:
            metrics["actor/kl_coefficient"] = self._kl_controller.coefficient
            self._kl_controller = self._kl_controller.updated(
                metrics["actor/kl_to_ref"], state.columns.num_rows
            )
        num_tokens = max(outcome.num_tokens for outcome in state.outcomes.values())
        metrics["perf/tokens_per_second"] = num_tokens / seconds
        return IterationReport(
            iteration=state.iteration,
            seconds=seconds,
            metrics=metrics,
            stages=self._stages(state),
            reallocations=tuple(state.reallocations),
            weight_version=self.weight_versions["actor"],
        )

    def _stages(self, state: IterationState) -> tuple[StageReport, ...]:
        moved = {report.model_id: report.seconds for report in state.reallocations}
        stages = [
            StageReport(
                name=f"reallocate:{model_id}",
                model_seconds=self._plan.model_reallocation_seconds,
                measured_seconds=seconds,
            )
            for model_id, seconds in moved.items()
        ]
        for call in self._graph.calls:
            if call.name in state.outcomes:
                stages.append(
                    StageReport(
                        name=call.name,
                        model_seconds=self._plan.placement(call.name).model_seconds,
                        measured_seconds=state.outcomes[call.name].seconds,
                    )
                )
        return tuple(stages)


def _metrics(call: FunctionCall, outcome: CallOutcome) -> dict[str, float]:
    """Metrics of a call under the names that dashboards use."""
    if call.kind is CallKind.GENERATE:
        names = {"reward": "reward/mean", "response_tokens": "response/mean_tokens"}
        return {names.get(key, f"response/{key}"): value for key, value in outcome.metrics.items()}
    return {
        key if key.startswith("train_rollout") else f"{call.model}/{key}": value
        for key, value in outcome.metrics.items()
    }
