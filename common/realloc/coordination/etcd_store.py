"""The Store on etcd, over aetcd's generated stubs (docs/adr/0001-aetcd-instead-of-etcd3.md)."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from realloc.config import ServiceConfig
from realloc.coordination.etcd_channel import EtcdConnection, EtcdConnections
from realloc.coordination.etcd_messages import (
    entry_from_proto,
    failed_compares,
    range_request,
    transaction_request,
)
from realloc.coordination.etcd_watch import EtcdWatch, History, is_task_cancelled
from realloc.coordination.lease import Lease
from realloc.coordination.store import (
    Compare,
    CompareFailed,
    Entry,
    Event,
    Listing,
    Store,
    Unanswered,
    check_transaction,
    check_ttl,
    until_answered,
)
from realloc.core.errors import (
    NotFound,
    ReallocError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from realloc.security.handshake import find_refusal
from realloc.security.tls import ETCD_NAME, ChannelSecurity, peer_security

HISTORY_KEY = "/realloc/history"
"""Holds the random `History.identity` of this etcd's data."""


class EtcdStore(Store):
    """One client of an etcd cluster; made and used on one event loop.

    It talks to one member at a time and moves on when that one dies or hangs.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_seconds: float = 5.0,
        security: ChannelSecurity | None = None,
    ) -> None:
        """
        Args:
            endpoints: members' client addresses, see `etcd_channel.channel_target`.
            timeout_seconds: deadline of every call that gives none.
            security: TLS; None talks in the clear.

        Raises:
            InvalidInput: the endpoints cannot be used together.
        """
        self._connections = EtcdConnections(endpoints, security, retire_seconds=timeout_seconds)
        self._endpoints = ", ".join(endpoints)
        self._timeout_seconds = timeout_seconds
        self._leases: set[Lease] = set()
        self._closed = False

    @property
    def timeout_seconds(self) -> float:
        return self._timeout_seconds

    async def get(self, key: str, *, timeout_seconds: float | None = None) -> Entry | None:
        response = await self._range(range_request(key), timeout_seconds)
        return entry_from_proto(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, timeout_seconds: float | None = None) -> Listing:
        response = await self._range(range_request(prefix, whole_prefix=True), timeout_seconds)
        return Listing(
            entries=tuple(entry_from_proto(kv) for kv in response.kvs),
            revision=response.header.revision,
        )

    async def transact(
        self,
        *,
        compare: Collection[Compare] = (),
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
        lease: Lease | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        check_transaction(compare, put or {}, delete)
        request = transaction_request(compare, put or {}, delete, lease.id if lease else 0)
        with self._call(timeout_seconds) as (etcd, seconds):
            response = await etcd.kv.Txn(request, timeout=seconds, wait_for_ready=True)
        if not response.succeeded:
            raise CompareFailed(failed_compares(compare, response))
        return int(response.header.revision)

    async def grant(self, *, ttl_seconds: int, timeout_seconds: float | None = None) -> Lease:
        check_ttl(ttl_seconds)
        granted = asyncio.get_running_loop().time()
        request = rpc.LeaseGrantRequest(TTL=ttl_seconds)
        with self._call(timeout_seconds) as (etcd, seconds):
            response = await etcd.lease.LeaseGrant(request, timeout=seconds, wait_for_ready=True)
        lease = Lease(
            response.ID, response.TTL, granted=granted, renew=self._renew, revoke=self._revoke
        )
        self._leases = {held for held in self._leases if not held.lost.is_set()} | {lease}
        return lease

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[Event, None]:
        watch = EtcdWatch(
            open_stream=self._open_watch,
            read_history=self._read_history,
            prefix=prefix,
            next_revision=start_revision,
            timeout_seconds=self._timeout_seconds,
            is_closed=lambda: self._closed,
        )
        async with contextlib.aclosing(watch.events()) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        self._closed = True
        for lease in self._leases:
            await lease.abandon()
        await self._connections.close()

    async def _range(self, request: Any, timeout_seconds: float | None) -> Any:
        async def once(attempt_seconds: float) -> Any:
            with self._call(attempt_seconds) as (etcd, seconds):
                return await etcd.kv.Range(request, timeout=seconds, wait_for_ready=True)

        return await until_answered(once, self._deadline(timeout_seconds))

    def _open_watch(self) -> Any:
        # The member ends the stream when it loses its leader, instead of falling silent.
        metadata = (("hasleader", "true"),)
        return self._connections.present.watch.Watch(metadata=metadata, wait_for_ready=True)

    async def _read_history(self) -> History:
        response = await self._range(range_request(HISTORY_KEY), None)
        if not response.kvs:
            with contextlib.suppress(CompareFailed):
                await self.transact(
                    compare=[Compare.absent(HISTORY_KEY)], put={HISTORY_KEY: uuid.uuid4().bytes}
                )
            response = await self._range(range_request(HISTORY_KEY), None)
        identity = response.kvs[0].value if response.kvs else b""
        return History(identity=identity, revision=response.header.revision)

    async def _renew(self, lease_id: int, timeout_seconds: float) -> float:
        """Renew once, on a stream of its own: one that broke cannot stand in the way."""
        request = rpc.LeaseKeepAliveRequest(ID=lease_id)
        with self._call(timeout_seconds) as (etcd, seconds):
            call = etcd.lease.LeaseKeepAlive(iter([request]), timeout=seconds, wait_for_ready=True)
            try:
                response = await call.read()
            finally:
                call.cancel()
        if response is grpc.aio.EOF:
            raise self._unreachable("ended the stream")
        return float(response.TTL)

    async def _revoke(self, lease_id: int) -> None:
        request = rpc.LeaseRevokeRequest(ID=lease_id)
        with contextlib.suppress(NotFound), self._call(None) as (etcd, seconds):
            await etcd.lease.LeaseRevoke(request, timeout=seconds, wait_for_ready=True)

    @contextlib.contextmanager
    def _call(self, timeout_seconds: float | None) -> Iterator[tuple[EtcdConnection, float]]:
        """The connection and the deadline for one call; gRPC's errors come out as ours."""
        if self._closed:
            raise Unavailable("the store is closed; open a new one")
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        etcd = self._connections.present
        try:
            yield etcd, seconds
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._connections.starved(etcd, seconds)
            raise self._translate(error, seconds) from error
        except asyncio.CancelledError:
            if is_task_cancelled():
                raise
            # The channel was closed, which cancels its calls.
            raise Unavailable("the connection to etcd was closed during a call") from None

    def _translate(self, error: grpc.aio.AioRpcError, seconds: float) -> ReallocError:
        details = error.details() or ""
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                return NotFound(f"{details}; nothing was written; grant a new lease")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return ResourceExhausted(f"etcd at {self._endpoints}: {details}")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return self._unreachable(f"did not answer within {seconds:g} s")
            case grpc.StatusCode.UNAVAILABLE:
                return self._unreachable(f"cannot answer now: {details}")
        return self._unreachable(f"failed with {error.code().name}: {details}")

    def _unreachable(self, what: str) -> Unanswered:
        return Unanswered(
            f"etcd at {self._endpoints} {what}; check that it runs and can be reached from here, "
            "then try again"
        )


@contextlib.asynccontextmanager
async def store_of(config: ServiceConfig) -> AsyncIterator[EtcdStore]:
    """The cluster's etcd, for a process with this configuration; it need not be up yet.

    Raises:
        InvalidInput: the endpoints or the certificates are not usable.
        Unauthenticated: a member is up, and it and this process refuse each other.
    """
    security = peer_security(config.tls_dir, server_name=ETCD_NAME)
    async with EtcdStore(config.etcd_endpoints, security=security) as store:
        if security is not None:
            # Later it would only be a member that does not answer.
            await asyncio.to_thread(_check_welcome, config.etcd_endpoints, security)
        yield store


def _check_welcome(endpoints: Sequence[str], security: ChannelSecurity) -> None:
    for endpoint in endpoints:
        if reason := find_refusal(endpoint, security):
            raise Unauthenticated(f"etcd at {endpoint}: {reason}")
