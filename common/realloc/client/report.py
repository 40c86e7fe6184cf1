"""Jobs as people read them: lines and tables."""

from collections.abc import Sequence
from datetime import datetime
from statistics import median

from rich.table import Column, Table

from realloc.core.job import IterationReport, Job, StageReport
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
    """Seconds per stage, medians over the iterations, and how far off the predictions are.

    Each iteration is predicted from those before it, of this and of earlier jobs.
    """
    table = Table(
        "stage", "model s", "off by", "predicted s", "off by", "measured s", title="per iteration"
    )
    for stage in stage_medians(reports):
        table.add_row(
            stage.name,
            f"{stage.model_seconds:.3f}",
            _off_by(stage.model_seconds, stage.measured_seconds),
            f"{stage.predicted_seconds:.3f}",
            _off_by(stage.predicted_seconds, stage.measured_seconds),
            f"{stage.measured_seconds:.3f}",
        )
    return table


def _off_by(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.0f} %" if predicted and measured else "-"


def stage_medians(reports: Sequence[IterationReport]) -> list[StageReport]:
    """Of each stage the medians over the iterations that had it."""
    stages: dict[str, list[StageReport]] = {}
    for report in reports:
        for stage in report.stages:
            stages.setdefault(stage.name, []).append(stage)
    return [
        StageReport(
            name=name,
            model_seconds=median(each.model_seconds for each in found),
            predicted_seconds=median(each.predicted_seconds for each in found),
            measured_seconds=median(each.measured_seconds for each in found),
        )
        for name, found in stages.items()
    ]
