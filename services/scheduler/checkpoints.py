"""Saves what a job needs to go on, one checkpoint at a time, while its iterations run.

    copy to host memory on every trainer      the job waits for this
    files, then manifest, rename, marker      behind the iterations; the next copy waits for it

A checkpoint that cannot be written is told and does not end the job: the one before it stays.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realloc.api.trainer.v1 import trainer_pb2
from realloc.core.checkpoint_folder import CheckpointFolder, Manifest, SavedFile
from realloc.core.errors import ReallocError, Unavailable
from realloc.core.experiment import CheckpointSettings
from realloc.core.job import IterationReport, Job, SavedCheckpoint
from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.spans import Attributes, record, span
from realloc.wire.convert import from_proto
from services.scheduler.saved_job import write_saved_job
from services.scheduler.shards import JobShards
from services.scheduler.together import together

History = Callable[[], Awaitable[tuple[Job, Sequence[IterationReport]]]]
"""Gives the job and its reports as they are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvents:
    """Whom saving tells, and whom it asks."""

    history: History
    saved: Callable[[SavedCheckpoint], Awaitable[None]]
    failed: Callable[[str], Awaitable[None]]
    """Takes why a checkpoint was not written."""


class JobCheckpoints:
    """The checkpoints of one job that runs."""

    def __init__(
        self,
        *,
        job_id: str,
        settings: CheckpointSettings,
        shards: JobShards,
        events: CheckpointEvents,
        timeout_seconds: float,
    ) -> None:
        """
        Args:
            timeout_seconds: deadline of each checkpoint.
        """
        self._job_id = job_id
        self._settings = settings
        self._folder = CheckpointFolder(Path(settings.folder))
        self._shards = shards
        self._events = events
        self._timeout = timeout_seconds
        self._writing: asyncio.Task[None] | None = None
        self.saved_iteration = 0
        """Iteration of the newest complete checkpoint."""

    async def save(self, manifest: Manifest) -> None:
        """Copy the state of every trainer, then write it in the background.

        Args:
            manifest: all but files and tensors, which the trainers tell.
        """
        await self.settle()
        job, reports = await self._events.history()
        attributes: Attributes = {
            Attribute.JOB_ID: self._job_id,
            Attribute.ITERATION: manifest.iteration,
        }
        try:
            partial = await asyncio.to_thread(self._folder.begin, manifest.iteration)
        except OSError as error:
            await self._events.failed(f"{self._settings.folder}: {error.strerror}")
            return
        streams = self._start(partial)
        with span(Span.CHECKPOINT_SNAPSHOT, attributes):
            copies = await together(_first(stream) for stream in streams)
        snapshot_seconds = max(copy.snapshot_seconds for copy in copies)
        record(Metric.CHECKPOINT_SNAPSHOT_SECONDS, snapshot_seconds)

        async def write() -> None:
            started = time.monotonic()
            with span(Span.CHECKPOINT, attributes):
                files = await together(_last(stream) for stream in streams)
                await asyncio.to_thread(write_saved_job, partial, job, reports)
                complete = _with_files(manifest, files)
                path = await asyncio.to_thread(self._folder.commit, complete)
                await asyncio.to_thread(self._folder.prune, self._settings.keep)
            self.saved_iteration = manifest.iteration
            seconds = time.monotonic() - started
            record(Metric.CHECKPOINT_SECONDS, seconds)
            record(Metric.CHECKPOINT_BYTES, complete.num_bytes)
            await self._events.saved(
                SavedCheckpoint(
                    iteration=manifest.iteration,
                    path=str(path),
                    bytes=complete.num_bytes,
                    snapshot_seconds=snapshot_seconds,
                    write_seconds=seconds,
                )
            )

        self._writing = asyncio.create_task(self._told(write(), manifest.iteration))

    async def settle(self) -> None:
        """Wait for the checkpoint that is being written, if any; how it ended is told."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    async def close(self) -> None:
        """Give up what is being written."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def _start(self, folder: Path) -> list[Any]:
        requests = [
            (
                shard,
                trainer_pb2.SaveStateRequest(
                    job_id=self._job_id, sequence=shard.next_sequence(), folder=str(folder)
                ),
            )
            for shard in self._shards.trainers.values()
        ]
        return [
            shard.trainer.SaveState(message, timeout=self._timeout) for shard, message in requests
        ]

    async def _told(self, writing: Awaitable[None], iteration: int) -> None:
        try:
            await writing
        except (ReallocError, OSError) as error:
            with suppress(ReallocError):
                await self._events.failed(
                    f"the checkpoint of iteration {iteration} was not written: {error}"
                )


async def _first(stream: Any) -> Any:
    """The first answer of a trainer: the copy is made."""
    async for answer in stream:
        return answer
    raise Unavailable("a trainer ended without a snapshot")


async def _last(stream: Any) -> Any:
    """The last answer of a trainer: the file is written."""
    async for answer in stream:
        if answer.HasField("file"):
            return answer
    raise Unavailable("a trainer ended without a file")


def _with_files(manifest: Manifest, answers: Sequence[Any]) -> Manifest:
    """The manifest with what every rank wrote."""
    tensors: dict[str, tuple[int, ...]] = {}
    for number, answer in enumerate(answers):
        for name in answer.tensors:
            tensors[name] = (*tensors.get(name, ()), number)
    files = tuple(from_proto(answer.file, SavedFile) for answer in answers)
    return replace(manifest, files=files, tensors=tensors)
