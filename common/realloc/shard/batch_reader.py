"""Pulls the rows that references name, from this process or from peers. Blocking."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.core.batch import Batch, BatchReference, RaggedArray
from realloc.rpc.channel import connect_sync
from realloc.rpc.sync_channel import SyncChannel
from realloc.security.tls import ChannelSecurity, TlsFiles
from realloc.shard.batches import BatchStore
from realloc.wire.ragged import read_batch

_INTEGER_FIELDS = frozenset({"tokens", "prompt_length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldGroup:
    """References whose rows follow each other, and the fields to pull of them."""

    fields: tuple[str, ...]
    references: tuple[BatchReference, ...]


class BatchReader:
    """Channels to peers are opened on first use and kept. Thread-safe."""

    def __init__(
        self,
        batches: BatchStore,
        *,
        timeout_seconds: float,
        max_bytes: int = 4 << 30,
        security: ChannelSecurity | None = None,
    ) -> None:
        self._batches = batches
        self._security = security
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._channels: dict[tuple[str, TlsFiles | None], SyncChannel] = {}

    def read(self, groups: Sequence[FieldGroup]) -> Batch:
        """All fields of all groups, one row per referenced row.

        Raises:
            NotFound: a batch was released.
            Unavailable: a peer is gone or too slow.
        """
        whole = Batch(fields={})
        for group in groups:
            whole = whole.merge(self._read_group(group))
        return whole

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            channel.close()

    def _read_group(self, group: FieldGroup) -> Batch:
        if not group.references:
            return Batch(fields={name: _empty(name) for name in group.fields})
        rows: dict[tuple[str, str], list[int]] = {}
        positions: dict[tuple[str, str], list[int]] = {}
        position = 0
        for reference in group.references:
            source = (reference.address, reference.key)
            rows.setdefault(source, []).extend(reference.rows)
            positions.setdefault(source, []).extend(range(position, position + len(reference.rows)))
            position += len(reference.rows)
        pulled = Batch.concatenate(
            [self._pull(*source, group.fields, wanted) for source, wanted in rows.items()]
        )
        order = np.concatenate([np.asarray(places) for places in positions.values()])
        return pulled.take(np.argsort(order).tolist())

    def _pull(self, address: str, key: str, fields: Sequence[str], rows: Sequence[int]) -> Batch:
        if address == self._batches.address:
            return self._batches.get(key, fields, rows)
        stub = shard_pb2_grpc.BatchServiceStub(self._channel(address))
        request = shard_pb2.FetchBatchRequest(key=key, fields=fields, rows=rows)
        responses = stub.FetchBatch(request, timeout=self._timeout_seconds)
        return read_batch(responses, max_bytes=self._max_bytes)

    def _channel(self, address: str) -> SyncChannel:
        """The channel to a peer; another one once this process has new certificates."""
        files = None if self._security is None else self._security.files()
        if (address, files) not in self._channels:
            self._channels[address, files] = connect_sync(address, security=self._security)
        return self._channels[address, files]


def _empty(name: str) -> RaggedArray:
    dtype = "int32" if name in _INTEGER_FIELDS else "float32"
    return RaggedArray(values=np.empty(0, dtype), lengths=np.empty(0, np.int64))
