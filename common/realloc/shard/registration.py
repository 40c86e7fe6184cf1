"""How a service makes itself known: one registration for all of them."""

import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any

from realloc.config import ServiceConfig
from realloc.coordination.membership import Member, Registration
from realloc.coordination.store import Store
from realloc.coordination.versions import version_labels


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
            labels={**version_labels(config.service), **labels},
        )
        async with Registration(store, member):
            yield

    return registered
