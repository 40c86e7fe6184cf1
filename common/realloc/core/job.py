"""Jobs: their states, and what each iteration reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from realloc.core.experiment import Experiment
from realloc.core.plan import ExecutionPlan


class JobState(Enum):
    """Where a job stands."""

    PENDING = "pending"
    PLANNING = "planning"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_at_rest(self) -> bool:
        """True where nothing is done for the job, unless somebody resumes it."""
        return TRANSITIONS[self] <= _RESTARTS


class Wanted(Enum):
    """What was asked of a running job and has not been done yet."""

    NOTHING = "nothing"
    CHECKPOINT = "checkpoint"
    PAUSE = "pause"


_ENDS = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.PAUSED})
_RESTARTS = frozenset({JobState.PENDING, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.PENDING: _ENDS | {JobState.PLANNING},
        JobState.PLANNING: _ENDS | {JobState.QUEUED},
        # A new leader plans a queued job again.
        JobState.QUEUED: _ENDS | {JobState.STARTING, JobState.PLANNING},
        JobState.STARTING: _ENDS | {JobState.RUNNING, JobState.RECOVERING},
        JobState.RUNNING: _ENDS | {JobState.SUCCEEDED, JobState.RECOVERING},
        JobState.RECOVERING: _ENDS | {JobState.STARTING},
        JobState.PAUSED: _RESTARTS,
        JobState.SUCCEEDED: frozenset(),
        # Only where they are resumed.
        JobState.FAILED: frozenset({JobState.PENDING}),
        JobState.CANCELLED: frozenset({JobState.PENDING}),
    }
)
"""Which states may follow which; docs/architecture.md draws this table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One held-out evaluation by greedy decoding."""

    iteration: int
    """Iterations that had ended."""
    reward: float
    """Mean reward over the prompts."""
    num_prompts: int
    weight_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """Seconds of one function call or reallocation."""

    name: str
    """Name of the call, or ``reallocate:MODEL``."""
    model_seconds: float
    """What the cost model says, before anything was measured."""
    measured_seconds: float
    predicted_seconds: float = 0.0
    """The model's seconds, corrected by the iterations before this one, of any job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReallocationReport:
    """One reallocation that was committed."""

    model_id: str
    weight_version: int
    bytes: int
    """Bytes written at the destinations."""
    seconds: float
    """From the request to the commit."""
    digest_ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """One iteration as measured. Iteration 0 is the evaluation before the first."""

    iteration: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """By name: ``actor/loss``, ``reward/mean``, ``train_rollout_logprob_abs_diff``, …"""
    stages: tuple[StageReport, ...] = ()
    reallocations: tuple[ReallocationReport, ...] = ()
    weight_version: int = 0
    saved_iteration: int = 0
    """Iteration of the newest checkpoint when it ended; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint from which a job can go on."""

    iteration: int
    """Iterations that had ended."""
    path: str
    bytes: int
    snapshot_seconds: float
    """Seconds that the job waited for the copy to host memory."""
    write_seconds: float
    """Seconds until it was complete, while the job went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job and how far it is."""

    job_id: str
    experiment: Experiment
    state: JobState = JobState.PENDING
    error: str = ""
    """Why it failed; empty otherwise."""
    activity: str = ""
    """What it is doing, one short phrase."""
    submit_time: float = 0.0
    """Unix seconds."""
    start_time: float = 0.0
    end_time: float = 0.0
    iteration: int = 0
    """Iterations that have ended."""
    plan: ExecutionPlan | None = None
    evaluations: tuple[Evaluation, ...] = ()
    trace_id: str = ""
    checkpoint: str = ""
    """Folder of the final checkpoint; empty before it is complete."""
    request_id: str = ""
    wanted: Wanted = Wanted.NOTHING
    """What was asked of it and has not been done yet."""
    saved: SavedCheckpoint | None = None
    """The newest checkpoint to resume from."""
    recoveries: int = 0
    """How often it has lost a process and recovered since its newest checkpoint."""
    warning: str = ""
    """What went wrong without ending it, such as a checkpoint that could not be written."""
