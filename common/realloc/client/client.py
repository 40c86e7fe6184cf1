"""The Python SDK.

    from realloc.client.client import Client

    with Client() as client:
        job = client.submit(experiment)
        for update in job.watch():
            print(update.job.state, update.report)

Blocking; every call has a deadline and raises the classes of `realloc.core.errors`.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from realloc.api.scheduler.v1 import experiment_pb2, scheduler_pb2_grpc
from realloc.api.scheduler.v1 import scheduler_pb2 as pb
from realloc.client.access import security_towards
from realloc.client.endpoints_file import ENDPOINTS_FILE, read_endpoints
from realloc.core.errors import InvalidInput, JobFailed
from realloc.core.experiment import Experiment
from realloc.core.job import IterationReport, Job, JobState
from realloc.rpc.channel import connect_sync
from realloc.wire.convert import from_proto, to_proto

_WATCH_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUpdate:
    """A job after a change, and an iteration that has ended since."""

    job: Job
    report: IterationReport | None


class JobHandle:
    """A submitted job."""

    def __init__(self, client: "Client", job: Job) -> None:
        self._client = client
        self.job_id = job.job_id

    def get(self) -> Job:
        """The job as it is now."""
        return self._client.job(self.job_id)

    def reports(self) -> tuple[IterationReport, ...]:
        """What each iteration measured so far."""
        return self._client.reports(self.job_id)

    def watch(self, *, after_iteration: int = 0) -> Iterator[JobUpdate]:
        """The job now and at every change; ends with the job."""
        return self._client.watch(self.job_id, after_iteration=after_iteration)

    def wait(self) -> Job:
        """The job once it has succeeded.

        Raises:
            JobFailed: it failed, was cancelled or was paused.
        """
        for update in self.watch():
            job = update.job
        if job.state is not JobState.SUCCEEDED:
            raise JobFailed(job.error or f"job {job.job_id} was {job.state.value}")
        return job

    def cancel(self) -> Job:
        """Ask for the end of the job; returns at once."""
        return self._client.cancel(self.job_id)

    def pause(self) -> Job:
        """Ask the job to be saved and to stop; returns at once."""
        return self._client.pause(self.job_id)

    def save(self) -> Job:
        """Ask for a checkpoint after the iteration that runs; returns at once."""
        return self._client.save(self.job_id)


class Client:
    """A connection to the scheduler."""

    def __init__(self, address: str = "", *, authority: str = "", token: str = "") -> None:
        """
        Args:
            address: ``host:port``; by default REALLOC_ADDRESS, else the local cluster's.
            authority: file with the certificate of the cluster's authority; by default
                REALLOC_CA. Only a cluster on this machine may have none.
            token: who you are; by default REALLOC_TOKEN, else the text in REALLOC_TOKEN_FILE.

        Raises:
            InvalidInput: no address is known, or talking to it would not be safe.
        """
        address = address or default_address()
        security = security_towards(address, authority, token)
        self._channel = connect_sync(address, security=security)
        self._scheduler: Any = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)

    def submit(
        self, experiment: Experiment, *, request_id: str = "", resume: bool = False
    ) -> JobHandle:
        """Queue an experiment.

        Args:
            resume: go on from the newest checkpoint of the experiment's folder, if there is one.

        Raises:
            InvalidInput: every problem of it, with the paths of the fields.
        """
        return JobHandle(self, self._submit(experiment, request_id, False, resume))

    def validate(self, experiment: Experiment, *, resume: bool = False) -> None:
        """Check an experiment as `submit` does, and queue nothing."""
        self._submit(experiment, "", True, resume)

    def job(self, job_id: str) -> Job:
        """One job."""
        response = self._scheduler.GetJob(pb.GetJobRequest(job_id=job_id))
        return from_proto(response.job, Job)

    def reports(self, job_id: str) -> tuple[IterationReport, ...]:
        """What each iteration of a job measured so far."""
        response = self._scheduler.GetJob(pb.GetJobRequest(job_id=job_id))
        return tuple(from_proto(report, IterationReport) for report in response.reports)

    def handle(self, job_id: str) -> JobHandle:
        """A handle of a job that was submitted earlier."""
        return JobHandle(self, self.job(job_id))

    def jobs(self) -> Iterator[Job]:
        """All jobs, newest first."""
        token = ""
        while True:
            response = self._scheduler.ListJobs(pb.ListJobsRequest(page_token=token))
            yield from (from_proto(job, Job) for job in response.jobs)
            token = response.next_page_token
            if not token:
                return

    def watch(self, job_id: str, *, after_iteration: int = 0) -> Iterator[JobUpdate]:
        """A job now and at every change; ends with the job."""
        request = pb.WatchJobRequest(job_id=job_id, after_iteration=after_iteration)
        for response in self._scheduler.WatchJob(request, timeout=_WATCH_SECONDS):
            yield JobUpdate(
                job=from_proto(response.job, Job),
                report=from_proto(response.report, IterationReport)
                if response.HasField("report")
                else None,
            )

    def cancel(self, job_id: str) -> Job:
        """Ask for the end of a job; returns at once."""
        response = self._scheduler.CancelJob(pb.CancelJobRequest(job_id=job_id))
        return from_proto(response.job, Job)

    def save(self, job_id: str) -> Job:
        """Ask for a checkpoint after the iteration that runs; returns at once."""
        response = self._scheduler.SaveJob(pb.SaveJobRequest(job_id=job_id))
        return from_proto(response.job, Job)

    def pause(self, job_id: str) -> Job:
        """Ask a job to be saved and to stop, to be resumed later; returns at once."""
        response = self._scheduler.PauseJob(pb.PauseJobRequest(job_id=job_id))
        return from_proto(response.job, Job)

    def resume(self, job_id: str = "", *, folder: str = "") -> JobHandle:
        """Let a job go on that was paused, failed or was cancelled.

        Args:
            folder: its checkpoint folder instead of its id; then another cluster may have run it.
        """
        request = pb.ResumeJobRequest(job_id=job_id, folder=folder)
        response = self._scheduler.ResumeJob(request)
        return JobHandle(self, from_proto(response.job, Job))

    def trace(self, job_id: str) -> bytes:
        """The job's timeline as a Chrome trace: JSON for Perfetto or chrome://tracing."""
        request = pb.GetJobTraceRequest(job_id=job_id)
        return b"".join(response.data for response in self._scheduler.GetJobTrace(request))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, experiment: Experiment, request_id: str, validate_only: bool, resume: bool
    ) -> Job:
        request = pb.SubmitJobRequest(
            experiment=to_proto(experiment, experiment_pb2.Experiment),
            request_id=request_id or uuid.uuid4().hex,
            validate_only=validate_only,
            resume=resume,
        )
        return from_proto(self._scheduler.SubmitJob(request).job, Job)


def default_address() -> str:
    """REALLOC_ADDRESS, else the scheduler of the local cluster in the working folder.

    Raises:
        InvalidInput: neither is there.
    """
    if address := os.environ.get("REALLOC_ADDRESS", ""):
        return address
    if address := read_endpoints().get("scheduler", ""):
        return address
    raise InvalidInput.at(
        "REALLOC_ADDRESS",
        f"is not set and {ENDPOINTS_FILE} names no scheduler; start a cluster with "
        "`make run`, or set it to host:port",
    )
