"""BatchService: what peers pull from this shard."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from realloc.api.shard.v1 import shard_pb2 as pb
from realloc.api.shard.v1 import shard_pb2_grpc
from realloc.shard.batches import BatchStore
from realloc.wire.ragged import batch_chunks


class BatchServicer(shard_pb2_grpc.BatchServiceServicer):
    """Streams rows of kept batches."""

    def __init__(self, batches: BatchStore) -> None:
        self._batches = batches

    async def FetchBatch(
        self, request: pb.FetchBatchRequest, context: Any
    ) -> AsyncIterator[pb.FetchBatchResponse]:
        batch = await asyncio.to_thread(
            self._batches.get, request.key, tuple(request.fields), tuple(request.rows)
        )
        for chunk in batch_chunks(batch, pb.FetchBatchResponse):
            yield chunk

    async def ReleaseBatches(
        self, request: pb.ReleaseBatchesRequest, context: Any
    ) -> pb.ReleaseBatchesResponse:
        self._batches.release(request.job_id, request.before_iteration)
        return pb.ReleaseBatchesResponse()
