"""Connections to etcd: addresses, reconnects, which calls may be repeated, members that hang."""

import asyncio
import ipaddress
import json
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from realloc.core.errors import InvalidInput
from realloc.security.tls import ChannelSecurity, TlsFiles

_SERVICE_CONFIG = {
    # One member at a time, each client another first: load is spread, order is kept.
    "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}],
    # Reads only: a write that got no answer may have been applied, so its caller decides.
    "methodConfig": [
        {
            "name": [{"service": "etcdserverpb.KV", "method": "Range"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # etcd refuses pings more often than every 5 s; a member that hangs is left after 8 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Also the longest handshake: a hung member accepts connections and then says nothing.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
    # etcd is inside the cluster; and two stores of a process must not share a backoff.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

HUNG_SECONDS = 0.5
"""A call that got no answer for so long gives its connection up, where there are other members."""


class EtcdConnection:
    """One gRPC channel, which talks to one member at a time, and aetcd's stubs on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.kv: Any = rpc.KVStub(channel)
        self.lease: Any = rpc.LeaseStub(channel)
        self.watch: Any = rpc.WatchStub(channel)


class EtcdConnections:
    """The present connection, which is exchanged for a new one when its member hangs.

    A channel moves on by itself when its member dies, because the connection breaks. A member
    that hangs, or is cut off, keeps its connections for 8 s; so calls tell when they starve.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        security: ChannelSecurity | None,
        *,
        retire_seconds: float,
    ) -> None:
        """``retire_seconds``: time for the calls on a connection that was given up."""
        self.endpoints = tuple(endpoints)
        self._security = security
        self._retire_seconds = retire_seconds
        self._retiring: set[asyncio.Task[None]] = set()
        self._files = self._read()
        self._present = self._open()

    @property
    def present(self) -> EtcdConnection:
        """The connection for calls that begin now; a new one where the certificates are new."""
        files = self._read()
        if files is not self._files:
            self._files = files
            self._exchange()
        return self._present

    def starved(self, connection: EtcdConnection, seconds: float) -> None:
        """A call on ``connection`` got no answer within so many seconds."""
        if connection is self._present and seconds >= HUNG_SECONDS and len(self.endpoints) > 1:
            self._exchange()

    async def close(self) -> None:
        """Cancel every call."""
        for task in self._retiring:
            task.cancel()
        await self._present.channel.close()

    def _exchange(self) -> None:
        task = asyncio.create_task(self._present.channel.close(self._retire_seconds))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        self._present = self._open()

    def _read(self) -> TlsFiles | None:
        return None if self._security is None else self._security.files()

    def _open(self) -> EtcdConnection:
        return EtcdConnection(open_channel(self.endpoints, self._security))


def open_channel(endpoints: Sequence[str], security: ChannelSecurity | None) -> grpc.aio.Channel:
    """A channel that stays usable while any of the endpoints answers."""
    target = channel_target(endpoints)
    if security is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", security.server_name)]
    return grpc.aio.secure_channel(target, security.credentials(), options=options)


def channel_target(endpoints: Sequence[str]) -> str:
    """The gRPC name of all endpoints together.

    Args:
        endpoints: ``host:port``, an ``http://`` or ``https://`` before it is allowed: several IP
            addresses of one family, or a single DNS name, which may resolve to many addresses
            and is resolved again when connections break.

    Raises:
        InvalidInput: none, several DNS names, mixed families, or no port.
    """
    addresses = [endpoint.split("://", 1)[-1].rstrip("/") for endpoint in endpoints]
    schemes = {_scheme(address) for address in addresses}
    if len(schemes) != 1 or (schemes == {"dns"} and len(addresses) > 1):
        raise InvalidInput.at(
            "etcd.endpoints",
            f"{', '.join(endpoints) or 'none'}: give IP addresses of one family, or one DNS name "
            "that resolves to every member",
        )
    scheme = schemes.pop()
    return f"dns:///{addresses[0]}" if scheme == "dns" else f"{scheme}:{','.join(addresses)}"


def _scheme(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise InvalidInput.at("etcd.endpoints", f"{address!r} is not host:port")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "dns"
