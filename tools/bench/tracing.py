"""What traces and metrics cost an iteration of the demo's PPO job.

    python -m tools.bench.tracing

Runs the job on a local cluster with telemetry and without (OpenTelemetry's own switch), in
turn, and compares the medians of its iterations. As runs differ by more than telemetry can
cost, it also counts the spans of an iteration and measures one: times each other they give what
telemetry would cost if all processes waited for each other's spans, which they do not.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.local.cluster import LocalCluster, LocalSettings
from realloc.client.client import Client
from realloc.client.experiment_file import load_experiment
from realloc.core.experiment import Experiment
from realloc.core.job import JobState
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.recorded import read_spans
from realloc.telemetry.setup import tracer_provider
from realloc.telemetry.spans import span

ROOT = Path(__file__).resolve().parents[2]
NUM_SPANS = 20_000
"""Spans of which the cost of one is measured."""
WARM_UP = 4
"""Iterations that do not count: the first one compiles, and the critic warms up in three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One job."""

    iteration_seconds: float
    """Median."""
    spans: float
    """Per iteration; 0 without telemetry."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    for command in (("make_data.py", "run/arithmetic"), ("make_model.py", "run/arithmetic/model")):
        subprocess.run(
            [sys.executable, f"examples/arithmetic/{command[0]}", command[1]], check=True
        )
    with TemporaryDirectory() as folder:
        span_seconds = cost_of_a_span(Path(folder))
        print(f"a span: {span_seconds * 1e6:.1f} µs of CPU, export included", flush=True)
        runs: dict[bool, list[Run]] = {True: [], False: []}
        for number in range(2 * arguments.rounds):
            traced = number % 2 == 0
            run = run_job(Path(folder) / f"run-{number}", arguments.iterations, traced=traced)
            runs[traced].append(run)
            print(
                f"telemetry {'on ' if traced else 'off'}: {run.iteration_seconds:.4f} s, "
                f"{run.spans:.0f} spans",
                flush=True,
            )

    with_it, without = (
        statistics.median(run.iteration_seconds for run in runs[traced]) for traced in (True, False)
    )
    spans = statistics.median(run.spans for run in runs[True])
    print(f"an iteration: {with_it:.4f} s with telemetry, {without:.4f} s without")
    print(f"difference: {(with_it - without) / without:+.2%}")
    print(f"all of them one after the other: {spans * span_seconds / without:.2%} of an iteration")


def cost_of_a_span(folder: Path) -> float:
    """CPU seconds of a span with four attributes, its export to a file included."""
    provider = tracer_provider("bench", "bench", str(folder))
    tracer = provider.get_tracer("bench")
    began = time.process_time()
    for number in range(NUM_SPANS):
        attributes = {
            Attribute.CALL: "actor_train",
            Attribute.MODEL_ID: "actor",
            Attribute.ITERATION: number,
            Attribute.CALL_SEQUENCE: number,
        }
        with span(Span.FUNCTION_CALL_RANK, attributes, tracer=tracer):
            pass
    provider.shutdown()
    return (time.process_time() - began) / NUM_SPANS


def run_job(folder: Path, iterations: int, *, traced: bool) -> Run:
    """The demo's PPO job from random weights, on a cluster of its own."""
    with environment({"OTEL_SDK_DISABLED": "" if traced else "true"}):
        return asyncio.run(_run_job(folder, iterations, traced=traced))


async def _run_job(folder: Path, iterations: int, *, traced: bool) -> Run:
    settings = LocalSettings(run_dir=folder, reward_roots=(str(ROOT),))
    async with LocalCluster(settings, lambda text: None) as cluster:
        address = cluster.endpoints["scheduler"]
        return await asyncio.to_thread(_measure, address, folder, iterations, traced=traced)


def _measure(address: str, folder: Path, iterations: int, *, traced: bool) -> Run:
    with Client(address) as client:
        job = client.submit(demo(iterations))
        ended = job.wait()
        assert ended.state is JobState.SUCCEEDED, ended.error
        seconds = [report.seconds for report in job.reports()[WARM_UP:]]
    spans = 0
    if traced:
        spans = len(read_spans(folder / "traces", ended.trace_id))
    shutil.rmtree(folder / "traces", ignore_errors=True)
    return Run(iteration_seconds=statistics.median(seconds), spans=spans / iterations)


def demo(iterations: int) -> Experiment:
    """examples/ppo.yaml without the SFT before it, evaluations and the checkpoint."""
    experiment = load_experiment("examples/ppo.yaml")
    fresh = {"checkpoint": str(ROOT / "run" / "arithmetic" / "model"), "random_weights": True}
    assert experiment.critic is not None
    return replace(
        experiment,
        iterations=iterations,
        evaluation=None,
        output="",
        actor=replace(experiment.actor, **fresh),
        critic=replace(experiment.critic, **fresh),
    )


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    main()
