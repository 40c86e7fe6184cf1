"""`make demo`: SFT, then PPO, of a tiny model on a local cluster; prints and stores the facts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from deploy.local.parent import ending_with_parent
from realloc.client.client import Client, JobHandle
from realloc.client.experiment_file import load_experiment
from realloc.client.report import iteration_line, plan_table, stage_medians, stages_table
from realloc.core.errors import JobFailed, ReallocError
from realloc.core.job import IterationReport, Job, JobState, ReallocationReport

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("run")
REPORT = Path("demo-report.json")
START_SECONDS = 400.0
STOP_SECONDS = 60.0
_SHOW_EVERY_SECONDS = 2.0

PROFILED = (
    *("run/arithmetic/model", "--output", "run/profile.json", "--reuse", "--seconds", "15"),
    *("--rows", "64", "512", "--lengths", "12", "--tensor", "1", "2"),
)
"""What the demo's stages look like: packed batches of short rows, whole or split in two."""

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    os.chdir(ROOT)
    started = time.monotonic()
    say("data set, tokenizer and model configuration → run/arithmetic")
    subprocess.run(
        [sys.executable, "examples/arithmetic/make_data.py", "run/arithmetic"], check=True
    )
    subprocess.run(
        [sys.executable, "examples/arithmetic/make_model.py", "run/arithmetic/model"], check=True
    )
    say("a profile of this machine → run/profile.json, kept while it holds")
    subprocess.run([sys.executable, "-m", "tools.profile_hardware", *PROFILED], check=True)
    try:
        with local_cluster():
            facts = train(started)
    except ReallocError as error:
        console.print(f"demo: {error}", style="red")
        return 1
    REPORT.write_text(json.dumps(facts, indent=2) + "\n")
    say(f"the same facts: {REPORT}")
    return 0


def train(started: float) -> dict[str, Any]:
    """Run both jobs, print what they did, and return the facts of the report."""
    with Client() as client:
        sft = run_job(client, "examples/sft.yaml")
        ppo = run_job(client, "examples/ppo.yaml")
        reports = ppo.reports()
        trace = RUN / "ppo-trace.json"
        trace.write_bytes(client.trace(ppo.job_id))
        return summarize(sft.get(), ppo.get(), reports, trace, time.monotonic() - started)


def run_job(client: Client, path: str) -> JobHandle:
    """Submit an experiment and show its progress until it has succeeded."""
    experiment = load_experiment(path)
    job = client.submit(experiment)
    say(f"submitted {path} as {job.job_id}")
    shown, shown_at = "", 0.0
    for update in job.watch():
        now = time.monotonic()
        report, state = update.report, update.job.state
        if report is not None:
            last = report.iteration == experiment.iterations
            if report.iteration == 1 or last or now - shown_at > _SHOW_EVERY_SECONDS:
                console.print("  " + iteration_line(report, experiment.iterations), markup=False)
                shown_at = now
        elif state is not JobState.RUNNING:
            text = f"{state.value} {update.job.activity}".strip()
            if text != shown:
                console.print(f"  {text}", markup=False)
            shown = text
    ended = job.get()
    if ended.state is not JobState.SUCCEEDED:
        raise JobFailed(f"{path} {ended.state.value}: {ended.error}")
    return job


def summarize(
    sft: Job, ppo: Job, reports: Sequence[IterationReport], trace: Path, seconds: float
) -> dict[str, Any]:
    """Print the outcome; the same as plain values for the report file."""
    assert ppo.plan is not None
    accuracy = {
        "before_sft": sft.evaluations[0].reward,
        "after_sft": ppo.evaluations[0].reward,
        "after_ppo": ppo.evaluations[-1].reward,
    }
    moves = [move for report in reports for move in report.reallocations]
    compared = "train_rollout_logprob_abs_diff_max"
    differences = [r.metrics[compared] for r in reports if compared in r.metrics]
    console.print(plan_table(ppo.plan))
    console.print(stages_table(reports))
    say(f"{len(moves)} reallocations, each with agreeing digests:")
    for first in range(0, len(moves), 4):
        console.print("  " + "   ".join(map(move_text, moves[first : first + 4])), markup=False)
    say(
        f"largest |log-probability of trainer − of vLLM| of a sampled token: {max(differences):.1e}"
    )
    say(f"exact answers to {ppo.evaluations[0].num_prompts} held-out prompts:")
    for name, value in accuracy.items():
        console.print(f"  {name.replace('_', ' '):11} {value:7.1%}")
    say(f"trace (open in ui.perfetto.dev): {trace}")
    say(f"Hugging Face checkpoint: {ppo.checkpoint}")
    say(f"{seconds:.0f} s")
    return {
        "accuracy": accuracy,
        "plan": plain_plan(ppo),
        "stages": [
            {
                "name": stage.name,
                "model_seconds": stage.model_seconds,
                "predicted_seconds": stage.predicted_seconds,
                "measured_seconds": stage.measured_seconds,
            }
            for stage in stage_medians(reports)
        ],
        "reallocations": [
            {"bytes": move.bytes, "seconds": move.seconds, "digest_ok": move.digest_ok}
            for move in moves
        ],
        "train_rollout_logprob_abs_diff": max(differences),
        "trace": str(trace.absolute()),
        "checkpoint": ppo.checkpoint,
        "seconds": seconds,
        "first_iterations": [
            {"iteration": report.iteration, "metrics": dict(report.metrics)}
            for report in reports[:3]
        ],
    }


def move_text(move: ReallocationReport) -> str:
    """Version, bytes and seconds of one reallocation."""
    agreed = "" if move.digest_ok else " DIGESTS DIFFER"
    return f"v{move.weight_version} {move.bytes:,} B {move.seconds * 1e3:.1f} ms{agreed}"


def plain_plan(job: Job) -> list[dict[str, Any]]:
    """The placement of each call in the forms that people write."""
    assert job.plan is not None
    return [
        asdict(placement) | {"mesh": str(placement.mesh), "strategy": str(placement.strategy)}
        for placement in job.plan.placements
    ]


@contextmanager
def local_cluster() -> Iterator[None]:
    """A cluster of processes for as long as the context; afterwards none of them is left."""
    endpoints = RUN / "endpoints.json"
    endpoints.unlink(missing_ok=True)
    cluster = subprocess.Popen(
        ending_with_parent([sys.executable, "-m", "deploy.local"]),
        env=os.environ | {"REALLOC_PROFILE": str(Path("run/profile.json").absolute())},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not endpoints.exists():
            if cluster.poll() is not None or time.monotonic() > deadline:
                raise JobFailed("the local cluster did not start; see run/logs")
            time.sleep(0.1)
        yield
    finally:
        family = [psutil.Process(cluster.pid), *psutil.Process(cluster.pid).children(True)]
        cluster.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in left:
            process.kill()
        say("no process is left" if not left else f"had to kill {[p.pid for p in left]}")


def say(text: str) -> None:
    """One line of the demo's story."""
    console.print(f"demo: {text}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
