"""Jobs as people read them: lines and tables."""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Column, Table

from realloc.core.job import IterationReport, Job
from realloc.core.plan import ExecutionPlan


def iteration_line(report: IterationReport, iterations: int) -> str:
    """One line per iteration: reward, KL, tokens/s, seconds per stage, weight version."""
    metrics = report.metrics
    parts = [f"{report.iteration:>4}/{iterations}"]
    for name, label, form in (
        ("reward/mean", "reward", ".3f"),
        ("actor/loss", "loss", ".4f"),
        ("actor/kl_to_ref", "kl", ".4f"),
        ("perf/tokens_per_second", "tok/s", ",.0f"),
    ):
        if name in metrics:
            parts.append(f"{label} {format(metrics[name], form)}")
    stages = "  ".join(f"{stage.name} {stage.measured_seconds:.2f}s" for stage in report.stages)
    parts += [f"{report.seconds:.2f}s [{stages}]", f"v{report.weight_version}"]
    return "  ".join(parts)


def jobs_table(jobs: Sequence[Job]) -> Table:
    """All jobs, a row each."""
    first = Column("job", no_wrap=True)
    table = Table(first, "algorithm", "state", "iteration", "submitted", "activity or error")
    for job in jobs:
        table.add_row(
            job.job_id,
            job.experiment.algorithm,
            job.state.value,
            f"{job.iteration}/{job.experiment.iterations}",
            datetime.fromtimestamp(job.submit_time).strftime("%Y-%m-%d %H:%M:%S"),
            job.error or job.activity,
        )
    return table


def checkpoint_lines(job: Job) -> list[str]:
    """From which iteration a job would go on, and what went wrong without ending it."""
    lines = []
    folder = job.experiment.checkpoint.folder
    if job.saved is not None:
        saved = job.saved
        lines.append(
            f"checkpoint: iteration {saved.iteration}, {saved.bytes / 2**20:,.1f} MiB, "
            f"snapshot {saved.snapshot_seconds:.2f} s, written in {saved.write_seconds:.2f} s, "
            f"{saved.path}"
        )
    elif folder:
        lines.append(f"checkpoint: none yet in {folder}")
    if job.recoveries:
        lines.append(f"recovered {job.recoveries} times since")
    if job.warning:
        lines.append(f"warning: {job.warning}")
    return lines


def plan_table(plan: ExecutionPlan) -> Table:
    """The placement of every call."""
    table = Table("call", "devices", "strategy", "predicted s", "predicted MiB", title="plan")
    for placement in plan.placements:
        table.add_row(
            placement.call,
            str(placement.mesh),
            str(placement.strategy),
            f"{placement.predicted_seconds:.3f}",
            f"{placement.predicted_peak_bytes / 2**20:.1f}",
        )
    return table


def stages_table(reports: Sequence[IterationReport]) -> Table:
    """Predicted and measured seconds per stage; the measured ones are medians."""
    table = Table("stage", "predicted s", "measured s", "ratio", title="seconds per iteration")
    for name, predicted, measured in stage_medians(reports):
        ratio = f"{measured / predicted:.2f}" if predicted else "-"
        table.add_row(name, f"{predicted:.3f}", f"{measured:.3f}", ratio)
    return table


def stage_medians(reports: Sequence[IterationReport]) -> list[tuple[str, float, float]]:
    """Per stage its name, predicted seconds and the median of the measured seconds."""
    measured: dict[str, list[float]] = {}
    predicted: dict[str, float] = {}
    for report in reports:
        for stage in report.stages:
            measured.setdefault(stage.name, []).append(stage.measured_seconds)
            predicted[stage.name] = stage.predicted_seconds
    return [
        (name, predicted[name], sorted(seconds)[len(seconds) // 2])
        for name, seconds in measured.items()
    ]
