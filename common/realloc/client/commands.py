"""What each verb of the command line does; each returns the exit status."""

import argparse
import json
from dataclasses import asdict
from enum import Enum
from typing import Any

from rich.console import Console

from realloc.client.client import Client, JobHandle
from realloc.client.experiment_file import load_experiment
from realloc.client.report import (
    checkpoint_lines,
    iteration_line,
    jobs_table,
    plan_table,
    stages_table,
)
from realloc.core.job import Job, JobState

_SHOWN_REPORTS = 5


def submit(arguments: argparse.Namespace) -> int:
    """Queue an experiment, or only check it."""
    experiment = load_experiment(arguments.experiment)
    with Client(arguments.address) as client:
        if arguments.validate_only:
            client.validate(experiment, resume=arguments.resume)
            say(arguments, {"valid": True}, f"{arguments.experiment} is valid")
            return 0
        job = client.submit(experiment, request_id=arguments.request_id, resume=arguments.resume)
        say(arguments, {"job_id": job.job_id}, f"submitted {job.job_id}")
        return watch_handle(job, arguments) if arguments.watch else 0


def list_jobs(arguments: argparse.Namespace) -> int:
    """All jobs, newest first."""
    with Client(arguments.address) as client:
        jobs = list(client.jobs())
    if arguments.json:
        print(json.dumps([plain(job) for job in jobs]))
    else:
        Console().print(jobs_table(jobs) if jobs else "no jobs")
    return 0


def show_job(arguments: argparse.Namespace) -> int:
    """One job with its plan and its latest iterations."""
    with Client(arguments.address) as client:
        job, reports = client.job(arguments.job_id), client.reports(arguments.job_id)
    if arguments.json:
        print(json.dumps({"job": plain(job), "reports": [plain(report) for report in reports]}))
        return 0
    console = Console()
    console.print(jobs_table([job]))
    for line in checkpoint_lines(job):
        console.print(line, highlight=False, markup=False)
    if job.plan is not None:
        console.print(plan_table(job.plan))
    if reports:
        console.print(stages_table(reports))
    for report in reports[-_SHOWN_REPORTS:]:
        console.print(
            iteration_line(report, job.experiment.iterations), highlight=False, markup=False
        )
    for evaluation in job.evaluations:
        console.print(
            f"after iteration {evaluation.iteration}: held-out reward {evaluation.reward:.4f} "
            f"over {evaluation.num_prompts} prompts (weights v{evaluation.weight_version})"
        )
    return 0


def watch_job(arguments: argparse.Namespace) -> int:
    """Progress until the job ends."""
    with Client(arguments.address) as client:
        return watch_handle(client.handle(arguments.job_id), arguments)


def cancel_job(arguments: argparse.Namespace) -> int:
    """Ask for the end of a job."""
    with Client(arguments.address) as client:
        job = client.cancel(arguments.job_id)
    say(arguments, plain(job), f"{job.job_id} is {job.state.value}")
    return 0


def write_trace(arguments: argparse.Namespace) -> int:
    """Write the timeline of a job."""
    with Client(arguments.address) as client:
        data = client.trace(arguments.job_id)
    arguments.output.write_bytes(data)
    facts = {"output": str(arguments.output), "bytes": len(data)}
    say(arguments, facts, f"wrote {arguments.output}; open it in ui.perfetto.dev")
    return 0


def watch_handle(handle: JobHandle, arguments: argparse.Namespace) -> int:
    """Progress of a job until it ends or pauses; 0 where it succeeded."""
    console, shown = Console(), ""
    job: Job | None = None
    for update in handle.watch():
        job = update.job
        if arguments.json:
            report = plain(update.report) if update.report else None
            print(json.dumps({"job": plain(job), "report": report}), flush=True)
            continue
        if update.report is not None:
            line = iteration_line(update.report, job.experiment.iterations)
            console.print(line, highlight=False, markup=False)
        elif job.state is not JobState.RUNNING:
            text = f"{job.job_id}: {job.state.value}{' · ' + job.activity if job.activity else ''}"
            if text != shown:
                console.print(text, highlight=False, markup=False)
            shown = text
    assert job is not None
    if job.state is JobState.FAILED:
        console.print(f"failed: {job.error}", style="red", highlight=False, markup=False)
    return 0 if job.state is JobState.SUCCEEDED else 1


def say(arguments: argparse.Namespace, facts: Any, text: str) -> None:
    """Print facts as JSON where that was asked for, else the text."""
    print(json.dumps(facts) if arguments.json else text, flush=True)


def plain(value: Any) -> Any:
    """A dataclass as JSON values."""
    return json.loads(json.dumps(asdict(value), default=_enum_value))


def _enum_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(type(value).__name__)
