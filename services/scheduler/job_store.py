"""Jobs and their reports in the store; every write keeps to the transition table.

/realloc/jobs/<job id>                    the job
/realloc/reports/<job id>/<iteration>     one report per iteration
/realloc/requests/<request id>            job id of a submission, for idempotence
/realloc/corrections                      what measured iterations say of predictions
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from realloc.api.scheduler.v1 import scheduler_pb2 as pb
from realloc.coordination.store import Compare, CompareFailed, Entry, Event, Store, until_answered
from realloc.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from realloc.core.job import TRANSITIONS, IterationReport, Job, JobState
from realloc.cost.recalibration import Corrections
from realloc.wire.convert import from_proto, to_proto

_JOBS = "/realloc/jobs/"
_REPORTS = "/realloc/reports/"
_REQUESTS = "/realloc/requests/"
_CORRECTIONS = "/realloc/corrections"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """A job after a change, or a report that is new."""

    job: Job
    report: IterationReport | None = None


class JobStore:
    """What the scheduler knows of jobs; any process with the store sees the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, job: Job, reports: Sequence[IterationReport] = ()) -> Job:
        """Add a job; a request id that came before returns the job of that time.

        Args:
            reports: what iterations measured that another job, or another cluster, ran for it.
        """
        for report in reports:
            await self.add_report(job.job_id, report)
        put = {_JOBS + job.job_id: _encode(job)}
        compare = [Compare.absent(_JOBS + job.job_id)]
        if job.request_id:
            put[_REQUESTS + job.request_id] = job.job_id.encode()
            compare.append(Compare.absent(_REQUESTS + job.request_id))
        try:
            # Where an attempt without an answer was applied, the next one finds its request.
            await until_answered(
                lambda seconds: self._store.transact(
                    compare=compare, put=put, timeout_seconds=seconds
                ),
                self._store.timeout_seconds,
            )
        except CompareFailed:
            earlier = await self.of_request(job.request_id)
            if earlier is None:
                raise
            return earlier
        return job

    async def of_request(self, request_id: str) -> Job | None:
        """The job of an earlier submission with this request id."""
        earlier = await self._store.get(_REQUESTS + request_id)
        return await self.get(earlier.value.decode()) if earlier else None

    async def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            NotFound: there is none of this id.
        """
        return _decode(await self._entry(job_id))

    async def list(self) -> tuple[Job, ...]:
        """All jobs, newest first."""
        jobs = [_decode(entry) for entry in await self._store.list(_JOBS)]
        return tuple(sorted(jobs, key=lambda job: (-job.submit_time, job.job_id)))

    async def update(
        self, job_id: str, change: Callable[[Job], Job], *, at_rest: bool = False
    ) -> Job:
        """Change a job; one at rest stays as it is, unless `at_rest` says that it is meant.

        Raises:
            Conflict: the transition table does not allow the new state.
        """
        latest: list[Job] = []

        def changed(entry: Entry | None) -> bytes:
            if entry is None:
                raise NotFound(f"there is no job {job_id!r}")
            before = _decode(entry)
            after = before if before.state.is_at_rest and not at_rest else change(before)
            if after.state is not before.state and after.state not in TRANSITIONS[before.state]:
                raise Conflict(
                    f"job {job_id} is {before.state.value} and cannot become {after.state.value}"
                )
            latest[:] = [after]
            return _encode(after)

        await self._store.update(_JOBS + job_id, changed)
        return latest[0]

    async def move(self, job_id: str, state: JobState, **changes: object) -> Job:
        """Change a job's state, and other fields with it."""
        return await self.update(job_id, lambda job: replace(job, state=state, **changes))  # type: ignore[arg-type]  # fields of Job

    async def add_report(self, job_id: str, report: IterationReport) -> None:
        """Store what an iteration measured."""
        message = to_proto(report, pb.IterationReport)
        await self._store.put(
            f"{_REPORTS}{job_id}/{report.iteration:08d}", message.SerializeToString()
        )

    async def report(self, job_id: str, iteration: int) -> IterationReport:
        """The report of one iteration."""
        entry = await self._store.get(f"{_REPORTS}{job_id}/{iteration:08d}")
        if entry is None:
            raise NotFound(f"job {job_id} has no report of iteration {iteration}")
        return _decode_report(entry)

    async def reports(self, job_id: str) -> tuple[IterationReport, ...]:
        """All reports of a job, oldest first."""
        listing = await self._store.list(f"{_REPORTS}{job_id}/")
        return tuple(_decode_report(entry) for entry in listing)

    async def corrections(self) -> Corrections:
        """What all jobs so far say of the cost model's predictions."""
        return _corrections(await self._store.get(_CORRECTIONS))

    async def correct(self, change: Callable[[Corrections], Corrections]) -> None:
        """Add what an iteration measured; jobs that run beside each other lose nothing."""

        def changed(entry: Entry | None) -> bytes:
            return change(_corrections(entry)).to_json().encode()

        await self._store.update(_CORRECTIONS, changed)

    async def watch(self, job_id: str, *, after_iteration: int) -> AsyncGenerator[JobChange, None]:
        """The job now and at every change, with reports as they come; ends with the job."""
        entry, seen = await self._entry(job_id), after_iteration
        watched = self._store.watch(_JOBS + job_id, start_revision=entry.mod_revision + 1)
        async with aclosing(watched) as events:
            while True:
                job = _decode(entry)
                while seen < job.iteration:
                    seen += 1
                    yield JobChange(job=job, report=await self.report(job_id, seen))
                yield JobChange(job=job)
                if job.state.is_at_rest:
                    return
                entry = await self._next_change(events, entry)

    async def watch_all(self) -> AsyncGenerator[Job, None]:
        """Every job now, then each job again at every change; endless."""
        listing = await self._store.list(_JOBS)
        for entry in listing:
            yield _decode(entry)
        watched = self._store.watch(_JOBS, start_revision=listing.revision + 1)
        async with aclosing(watched) as events:
            async for event in events:
                if event.entry is not None:
                    yield _decode(event.entry)

    async def _entry(self, job_id: str) -> Entry:
        entry = await self._store.get(_JOBS + job_id)
        if entry is None:
            raise NotFound(f"there is no job {job_id!r}; `realloc jobs` lists them")
        return entry

    async def _next_change(self, events: AsyncGenerator[Event, None], entry: Entry) -> Entry:
        async for event in events:
            if event.key == entry.key and event.entry is not None:
                return event.entry
        raise Unavailable("the store closed its watch")


def _corrections(entry: Entry | None) -> Corrections:
    if entry is None:
        return Corrections()
    with suppress(InvalidInput):  # of another version: measured anew within a few iterations
        return Corrections.from_json(entry.value)
    return Corrections()


def _encode(job: Job) -> bytes:
    return to_proto(job, pb.Job).SerializeToString()


def _decode(entry: Entry) -> Job:
    return from_proto(pb.Job.FromString(entry.value), Job)


def _decode_report(entry: Entry) -> IterationReport:
    return from_proto(pb.IterationReport.FromString(entry.value), IterationReport)
