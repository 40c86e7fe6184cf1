"""What a call works on: batches that other shards keep, or rows of a data file."""

import asyncio

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.core.batch import Batch, BatchReference
from realloc.core.errors import Conflict
from realloc.shard.batch_reader import BatchReader, FieldGroup
from realloc.shard.data_source import DataSource
from realloc.shard.tokenizer import Tokenizer
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import span
from realloc.wire.convert import from_proto
from services.trainer.job_calls import JobCalls


class CallInputs:
    """Reads before a call's turn has come; where that fails, the turn passes unused."""

    def __init__(self, job: JobCalls, reader: BatchReader) -> None:
        self._job = job
        self._reader = reader
        self._data: DataSource | None = None
        self._data_lock = asyncio.Lock()

    async def name_tokenizer(self, sequence: int, tokenizer: str) -> None:
        """Rows of data files are tokenized as the job's first model wants them."""
        if self._data is None:
            self._data = await self._job.or_skip(
                sequence, lambda: DataSource(Tokenizer.load(tokenizer))
            )

    async def read(self, sequence: int, given: pb.CallInput) -> Batch:
        """The rows that a request names.

        Raises:
            Conflict: no model has named a tokenizer yet.
            Unavailable, NotFound: a batch is not to be had.
        """
        if given.HasField("data"):
            return await self._from_file(sequence, given)
        groups = [
            FieldGroup(
                fields=tuple(group.fields),
                references=tuple(
                    from_proto(reference, BatchReference) for reference in group.references
                ),
            )
            for group in given.groups
        ]
        with span(Span.PULL_BATCH) as current:
            batch = await self._job.or_skip(sequence, lambda: self._reader.read(groups))
            current.set_attribute(Attribute.NUM_ROWS, batch.num_rows)
        return batch

    def release(self) -> None:
        """Forget what was read for a job."""
        self._data = None

    async def _from_file(self, sequence: int, given: pb.CallInput) -> Batch:
        data = self._data
        if data is None:
            raise Conflict("no model has named a tokenizer for rows of a data file yet")
        async with self._data_lock:
            return await self._job.or_skip(
                sequence, lambda: data.supervised(given.data.path, given.data.rows)
            )
