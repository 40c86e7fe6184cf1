"""What a checkpoint says of its job, besides weights: read, written, and compared.

    job.json         the job as it was, as JSON of realloc.api.scheduler.v1.Job
    reports.jsonl    the reports of its iterations, one per line

With these a cluster that has never heard of the job can go on with it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from realloc.api.scheduler.v1 import scheduler_pb2 as pb
from realloc.core.checkpoint_folder import Checkpoint, CheckpointFolder
from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.experiment import CheckpointSettings, Experiment
from realloc.core.job import IterationReport, Job
from realloc.core.model import ModelArchitecture
from realloc.wire.convert import from_proto, to_proto
from services.scheduler.admission import Admission

_JOB = "job.json"
_REPORTS = "reports.jsonl"
_FREE = frozenset(
    {
        "name",
        "iterations",
        "evaluation",
        "pins",
        "output",
        "checkpoint",
        "max_tokens_per_micro_batch",
        "call_timeout_seconds",
    }
)
"""What may differ between an experiment and the one whose checkpoint it goes on from: how long
it runs, where, and what it tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedJob:
    """A job as its checkpoint has it."""

    checkpoint: Checkpoint
    job: Job
    reports: tuple[IterationReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a job goes on, if anywhere."""

    checkpoint: Checkpoint | None
    warning: str = ""
    """Newer checkpoints that do not count, and why."""

    @property
    def iteration(self) -> int:
        """Iterations that need not be repeated."""
        return self.checkpoint.manifest.iteration if self.checkpoint else 0


def resume_point(settings: CheckpointSettings) -> ResumePoint:
    """The newest complete checkpoint of a folder; none where there is no folder."""
    if not settings.folder:
        return ResumePoint(checkpoint=None)
    found = CheckpointFolder(Path(settings.folder)).look()
    warning = "; ".join(f"ignored {reason}" for reason in found.broken)
    return ResumePoint(checkpoint=found.newest, warning=warning)


def write_saved_job(folder: Path, job: Job, reports: Sequence[IterationReport]) -> None:
    """Put a job and its reports into a checkpoint that is being written."""
    (folder / _JOB).write_text(_to_json(to_proto(job, pb.Job)) + "\n")
    lines = (_to_json(to_proto(report, pb.IterationReport)) for report in reports)
    (folder / _REPORTS).write_text("".join(f"{line}\n" for line in lines))


def read_saved_job(checkpoint: Checkpoint) -> SavedJob:
    """The job that wrote a checkpoint.

    Raises:
        InvalidInput: what it says cannot be read.
    """
    path = checkpoint.path
    try:
        job = from_proto(json_format.Parse((path / _JOB).read_text(), pb.Job()), Job)
        reports = tuple(
            from_proto(json_format.Parse(line, pb.IterationReport()), IterationReport)
            for line in (path / _REPORTS).read_text().splitlines()
        )
    except (OSError, json_format.ParseError) as error:
        raise InvalidInput.at("checkpoint.folder", f"{path} cannot be read: {error}") from error
    return SavedJob(checkpoint=checkpoint, job=job, reports=reports)


def newest_saved_job(folder: str, field: str) -> SavedJob:
    """What the newest complete checkpoint of a folder says; `field` is the path in errors.

    Raises:
        InvalidInput: there is none, or it cannot be read.
    """
    point = resume_point(CheckpointSettings(folder=folder))
    if point.checkpoint is None:
        reason = point.warning or "it is empty or not there"
        raise InvalidInput.at(field, f"{folder} has no complete checkpoint: {reason}")
    return read_saved_job(point.checkpoint)


def check_same_job(admission: Admission, saved: SavedJob) -> None:
    """Refuse to go on from a checkpoint of something else.

    Raises:
        InvalidInput: every field that differs, with both values.
    """
    raise_problems(
        [
            *_experiment_problems(admission.experiment, saved.job.experiment),
            *_model_problems(admission, saved.checkpoint),
        ]
    )


def _experiment_problems(wanted: Experiment, saved: Experiment) -> Iterator[Problem]:
    now, then = _plain(wanted), _plain(saved)
    for name in now.keys() - _FREE:
        yield from _differences(name, now[name], then[name])


def _model_problems(admission: Admission, checkpoint: Checkpoint) -> Iterator[Problem]:
    """The models' and the data's files may have changed under the same names."""
    manifest = checkpoint.manifest
    if admission.data.num_rows != manifest.data_rows:
        yield Problem(
            "data.path",
            f"has {admission.data.num_rows} rows and had {manifest.data_rows} when "
            f"{checkpoint.path} was written; which rows come next depends on it",
        )
    for model in admission.models:
        if model.trains:
            then = manifest.architectures.get(model.model_id, {})
            yield from _differences(
                f"{model.model_id}.checkpoint", plain_architecture(model.architecture), then
            )


def plain_architecture(architecture: ModelArchitecture) -> dict[str, Any]:
    """An architecture as JSON gives it back."""
    return _plain(architecture)


def _differences(path: str, now: Any, then: Any) -> Iterator[Problem]:
    """Leaves that differ."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for key in sorted(now.keys() | then.keys()):
            yield from _differences(f"{path}.{key}", now.get(key), then.get(key))
    elif now != then:
        yield Problem(path, f"is {now!r} and was {then!r} in the checkpoint")


def _plain(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value), default=lambda each: each.value))
    return plain


def _to_json(message: Message) -> str:
    return json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)
