"""When weights move within an iteration, over toy calls that only note what they are."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from realloc.client.experiment_file import parse_experiment
from realloc.core.batch import BatchReference
from realloc.core.data_file import DataFile
from realloc.core.experiment import Experiment
from realloc.core.job import ReallocationReport
from realloc.core.kl_controller import initial_kl_controller
from realloc.core.mesh import DeviceMesh
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.core.strategy import ParallelStrategy
from realloc.dataflow.catalog import build_graph
from realloc.dataflow.graph import FunctionCall
from services.scheduler.columns import Columns
from services.scheduler.function_calls import CallOutcome
from services.scheduler.iteration import IterationRunner

TEST_SECONDS = 20.0


class ToyCalls:
    """Every model's version counts its train calls; the critic trains until it is let go."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.generated: list[int] = []
        self.critic_may_end = asyncio.Event()

    async def generate(
        self, call: FunctionCall, placement: Any, *, columns: Columns, weight_version: int, **_: Any
    ) -> CallOutcome:
        self.generated.append(weight_version)
        _add(columns, "tokens", "prompt_length", "logprobs", "reward")
        return CallOutcome(seconds=0.0, num_tokens=1)

    async def infer(
        self, call: FunctionCall, placement: Any, *, columns: Columns, **_: Any
    ) -> CallOutcome:
        _add(columns, *call.outputs)
        return CallOutcome(seconds=0.0, num_tokens=1)

    async def train(self, call: FunctionCall, placement: Any, **_: Any) -> CallOutcome:
        if call.model == "critic":
            await self.critic_may_end.wait()
        version = self.versions[call.model] = self.versions.get(call.model, 0) + 1
        return CallOutcome(seconds=0.0, num_tokens=1, weight_version=version)


def _add(columns: Columns, *fields: str) -> None:
    rows = tuple(range(columns.num_rows))
    reference = BatchReference(
        address="here", key=fields[0], fields=fields, rows=rows, lengths=(4,) * len(rows)
    )
    columns.add(reference, list(rows))


class ToyReallocator:
    """Notes which versions were begun early, and lets the critic end once one was."""

    def __init__(self, calls: ToyCalls) -> None:
        self._calls = calls
        self.started: list[int] = []

    def start(self, model_id: str, weight_version: int) -> None:
        assert model_id == "actor"
        self.started.append(weight_version)
        self._calls.critic_may_end.set()

    async def bring(self, model_id: str, weight_version: int) -> ReallocationReport | None:
        return None


class NoSpans:
    @contextmanager
    def iteration(self, iteration: int) -> Iterator[None]:
        yield

    @contextmanager
    def call(self, call: FunctionCall, iteration: int) -> Iterator[None]:
        yield


def experiment(folder: Path, algorithm: str, **changes: Any) -> Experiment:
    (folder / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    plain = {
        "name": "test",
        "algorithm": algorithm,
        "actor": {"checkpoint": str(folder)},
        "data": {"path": str(folder / "rows.jsonl"), "batch_size": 2},
    }
    return parse_experiment({**plain, **changes})


def runner(work: Experiment, calls: ToyCalls, reallocator: ToyReallocator) -> IterationRunner:
    graph = build_graph(work)
    mesh, strategy = DeviceMesh(first_device=0, num_devices=1), ParallelStrategy()
    return IterationRunner(
        experiment=work,
        graph=graph,
        plan=ExecutionPlan(
            placements=tuple(
                CallPlacement(call=call.name, mesh=mesh, strategy=strategy, predicted_seconds=0.0)
                for call in graph.placed_calls()
            ),
            predicted_seconds=0.0,
        ),
        data=DataFile.scan(work.data.path),
        calls=calls,  # type: ignore[arg-type]
        reallocator=reallocator,
        spans=NoSpans(),
        progress=lambda _: None,
        kl_controller=initial_kl_controller(work.ppo),
    )


def run_all(work: Experiment) -> tuple[ToyCalls, ToyReallocator]:
    async def scenario() -> tuple[ToyCalls, ToyReallocator]:
        calls = ToyCalls()
        reallocator = ToyReallocator(calls)
        iterations = runner(work, calls, reallocator)
        for iteration in range(1, work.iterations + 1):
            calls.critic_may_end.clear()
            if iteration == work.iterations and work.evaluation is None:
                calls.critic_may_end.set()  # nothing moves any more
            async with asyncio.timeout(TEST_SECONDS):
                await iterations.run(iteration)
        return calls, reallocator

    return asyncio.run(scenario())


def test_a_version_moves_while_the_critic_still_trains(tmp_path: Path) -> None:
    """The critic ends only after the actor's version was sent: nobody waits for the other. The
    last version moves only if it is evaluated."""
    calls, reallocator = run_all(experiment(tmp_path, "ppo", iterations=3))
    assert calls.generated == [0, 1, 2]
    assert reallocator.started == [1, 2]
    evaluation = {"path": str(tmp_path / "rows.jsonl")}
    _, reallocator = run_all(experiment(tmp_path, "ppo", iterations=3, evaluation=evaluation))
    assert reallocator.started == [1, 2, 3]


@pytest.mark.parametrize(("every", "moved"), [(0, [5]), (2, [2, 4, 5])])
def test_where_only_evaluation_generates_other_versions_stay(
    tmp_path: Path, every: int, moved: list[int]
) -> None:
    """Supervised training sends what is evaluated, and nothing else."""
    evaluation = {"path": str(tmp_path / "rows.jsonl"), "every": every}
    _, reallocator = run_all(experiment(tmp_path, "sft", iterations=5, evaluation=evaluation))
    assert reallocator.started == moved
