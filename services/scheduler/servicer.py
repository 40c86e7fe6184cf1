"""SchedulerService: parse, call, answer."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from realloc.api.scheduler.v1 import scheduler_pb2 as pb
from realloc.api.scheduler.v1 import scheduler_pb2_grpc
from realloc.core.errors import InvalidInput, NotFound, Unavailable
from realloc.core.experiment import Experiment
from realloc.core.job import Job
from realloc.telemetry.recorded import orphans, read_spans
from realloc.telemetry.timeline import trace_events
from realloc.wire.convert import from_proto, to_proto
from services.scheduler.job_changes import cancelled, pausing, saving
from services.scheduler.job_store import JobChange, JobStore
from services.scheduler.resumption import Resumption

_MAX_PAGE = 1000
_PIECE_BYTES = 512 * 1024
_STORE_SECONDS = 10.0
_TRACE_SECONDS = 5.0


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Works through the store alone, so that any scheduler process can answer."""

    def __init__(self, jobs: JobStore, resumption: Resumption, trace_dir: str) -> None:
        self._jobs = jobs
        self._resumption = resumption
        self._trace_dir = trace_dir
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End the streams that watch jobs."""
        self._closed.set()

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.SubmitJobResponse:
        experiment = from_proto(request.experiment, Experiment)
        job = Job(
            job_id="" if request.validate_only else _new_id(experiment.name),
            experiment=experiment,
            submit_time=time.time(),
            request_id=request.request_id or uuid.uuid4().hex,
        )
        job = await self._resumption.submit(
            job, resume=request.resume, validate_only=request.validate_only
        )
        return pb.SubmitJobResponse(job=to_proto(job, pb.Job))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        job = await self._jobs.get(request.job_id)
        reports = await self._jobs.reports(request.job_id)
        return pb.GetJobResponse(
            job=to_proto(job, pb.Job),
            reports=[to_proto(report, pb.IterationReport) for report in reports],
        )

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        if request.page_size < 0:
            raise InvalidInput.at("page_size", f"is {request.page_size} and must not be negative")
        jobs = await self._jobs.list()
        first = 0
        if request.page_token:
            ids = [job.job_id for job in jobs]
            if request.page_token not in ids:
                raise InvalidInput.at("page_token", "is not one that ListJobs gave")
            first = ids.index(request.page_token)
        last = first + min(request.page_size or 100, _MAX_PAGE)
        return pb.ListJobsResponse(
            jobs=[to_proto(job, pb.Job) for job in jobs[first:last]],
            next_page_token=jobs[last].job_id if last < len(jobs) else "",
        )

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        job = await self._jobs.update(request.job_id, cancelled, at_rest=True)
        return pb.CancelJobResponse(job=to_proto(job, pb.Job))

    async def SaveJob(self, request: pb.SaveJobRequest, context: Any) -> pb.SaveJobResponse:
        job = await self._jobs.update(request.job_id, saving, at_rest=True)
        return pb.SaveJobResponse(job=to_proto(job, pb.Job))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.PauseJobResponse:
        job = await self._jobs.update(request.job_id, pausing)
        return pb.PauseJobResponse(job=to_proto(job, pb.Job))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:
        if bool(request.job_id) == bool(request.folder):
            raise InvalidInput.at("job_id", "give either the job's id or its checkpoint folder")
        if request.folder:
            job = await self._resumption.resume_folder(request.folder)
        else:
            job = await self._resumption.resume_job(request.job_id)
        return pb.ResumeJobResponse(job=to_proto(job, pb.Job))

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchJobResponse]:
        changes = self._jobs.watch(request.job_id, after_iteration=request.after_iteration)
        async with aclosing(changes):
            while (change := await self._next(request.job_id, changes)) is not None:
                response = pb.WatchJobResponse(job=to_proto(change.job, pb.Job))
                if change.report is not None:
                    response.report.CopyFrom(to_proto(change.report, pb.IterationReport))
                yield response

    async def GetJobTrace(
        self, request: pb.GetJobTraceRequest, context: Any
    ) -> AsyncIterator[pb.GetJobTraceResponse]:
        job = await self._jobs.get(request.job_id)
        if not self._trace_dir:
            raise NotFound("this cluster keeps no traces; set trace_dir on its services")
        if not job.trace_id:
            raise NotFound(f"job {job.job_id} has not begun, so it has no trace yet")
        if job.state.is_at_rest:
            await self._wait_for_spans(job.trace_id)
        text = await asyncio.to_thread(trace_events, self._trace_dir, job.trace_id)
        for start in range(0, len(text), _PIECE_BYTES):
            yield pb.GetJobTraceResponse(data=text[start : start + _PIECE_BYTES])

    async def _wait_for_spans(self, trace_id: str) -> None:
        """Processes write their spans a moment after they end: wait until none is missing."""
        deadline = time.monotonic() + _TRACE_SECONDS
        while time.monotonic() < deadline:
            spans = await asyncio.to_thread(read_spans, self._trace_dir, trace_id)
            if any(not span.parent_id for span in spans) and not orphans(spans):
                return
            await asyncio.sleep(0.2)

    async def _next(
        self, job_id: str, changes: AsyncGenerator[JobChange, None]
    ) -> JobChange | None:
        """The next change; while there is none, the store is asked whether it still answers."""
        following = asyncio.ensure_future(anext(changes, None))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            while not following.done():
                await asyncio.wait(
                    [following, closed],
                    timeout=_STORE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if closed.done() and not following.done():
                    raise Unavailable("the scheduler is stopping; watch again")
                if not following.done():
                    await self._jobs.get(job_id)
            return following.result()
        finally:
            closed.cancel()
            following.cancel()
            await asyncio.gather(following, closed, return_exceptions=True)


def _new_id(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
    return f"{slug}-{uuid.uuid4().hex[:6]}"
