"""Pausing every job before the cluster goes away."""

import asyncio
from contextlib import suppress

import structlog

from realloc.core.errors import Conflict, ReallocError
from services.scheduler.job_changes import pausing
from services.scheduler.job_store import JobStore

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2


async def pause_jobs(jobs: JobStore, *, timeout_seconds: float) -> None:
    """Ask every job that can be resumed to pause, and wait until all have, or time is up."""
    with suppress(ReallocError, TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            asked = [
                job.job_id
                for job in await jobs.list()
                if not job.state.is_at_rest and await _ask(jobs, job.job_id)
            ]
            log.info("pausing jobs", jobs=len(asked), seconds=timeout_seconds)
            for job_id in asked:
                while not (await jobs.get(job_id)).state.is_at_rest:
                    await asyncio.sleep(_POLL_SECONDS)


async def _ask(jobs: JobStore, job_id: str) -> bool:
    """True unless the job would lose what it has done."""
    try:
        await jobs.update(job_id, pausing)
    except Conflict as error:
        log.warning("job is not paused", job=job_id, reason=str(error))
        return False
    return True
