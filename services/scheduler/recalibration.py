"""Predictions of a job's stages, corrected by what this and earlier jobs have measured."""

from dataclasses import replace

from realloc.core.job import IterationReport, StageReport
from realloc.core.plan import ExecutionPlan
from realloc.cost.recalibration import (
    Corrections,
    MeasuredCall,
    measured_call,
    measured_reallocation,
)
from services.scheduler.admission import Admission
from services.scheduler.job_store import JobStore


class StageRecalibration:
    """Completes the reports of one job, and learns from each."""

    def __init__(self, jobs: JobStore, admission: Admission, plan: ExecutionPlan) -> None:
        self._jobs = jobs
        self._calls = _measured_calls(admission, plan)

    async def completed(self, report: IterationReport) -> IterationReport:
        """The report with predictions that knew nothing of it; the store then knows it."""
        known = await self._jobs.corrections()
        stages = tuple(self._completed(stage, known) for stage in report.stages)
        await self._jobs.correct(lambda corrections: self._learned(corrections, report))
        return replace(report, stages=stages)

    def _completed(self, stage: StageReport, known: Corrections) -> StageReport:
        call = self._calls.get(stage.name)
        factor = known.factor(call) if call else 1.0
        return replace(stage, predicted_seconds=stage.model_seconds * factor)

    def _learned(self, corrections: Corrections, report: IterationReport) -> Corrections:
        for stage in report.stages:
            if call := self._calls.get(stage.name):
                corrections = corrections.observed(
                    call, predicted=stage.model_seconds, measured=stage.measured_seconds
                )
        return corrections


def _measured_calls(admission: Admission, plan: ExecutionPlan) -> dict[str, MeasuredCall]:
    """By the name of the stage."""
    architectures = {model.model_id: model.architecture for model in admission.models}
    calls = {}
    for call in admission.graph.placed_calls():
        strategy = plan.placement(call.name).strategy
        calls[call.name] = measured_call(call.kind.value, architectures[call.model], strategy)
    for model_id, architecture in architectures.items():
        calls[f"reallocate:{model_id}"] = measured_reallocation(architecture)
    return calls
