"""Checkpoints of jobs that never ran: everything but weights."""

from pathlib import Path
from typing import Any

from realloc.core.checkpoint_folder import CheckpointFolder, Manifest
from realloc.core.job import IterationReport, Job, JobState, StageReport
from services.scheduler.admission import Admission
from services.scheduler.saved_job import plain_architecture, write_saved_job


def save_job(admission: Admission, **fields: Any) -> Job:
    """Write a checkpoint of iteration 1 of job ``one`` into the experiment's folder."""
    work = admission.experiment
    job = Job(job_id="one", experiment=work, state=JobState.RUNNING, iteration=1, **fields)
    folder = CheckpointFolder(Path(work.checkpoint.folder))
    write_saved_job(folder.begin(1), job, [report()])
    folder.commit(
        Manifest(
            job_id="one",
            iteration=1,
            weight_versions={"actor": 2, "critic": 2},
            kl_coefficient=0.1,
            layouts={},
            architectures={
                model.model_id: plain_architecture(model.architecture)
                for model in admission.models
                if model.trains
            },
            data_rows=admission.data.num_rows,
            files=(),
            tensors={},
        )
    )
    return job


def report() -> IterationReport:
    """What iteration 1 measured."""
    stage = StageReport(
        name="actor_gen", model_seconds=0.1, predicted_seconds=0.12, measured_seconds=0.2
    )
    return IterationReport(iteration=1, seconds=0.3, metrics={"reward/mean": 0.1}, stages=(stage,))
