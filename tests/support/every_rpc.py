"""Every rpc of every service of ours, as the descriptors list them, so that none is forgotten."""

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

import realloc.api
from realloc.core.errors import ReallocError
from realloc.rpc.channel import Channel


def services() -> Iterator[tuple[ServiceDescriptor, Callable[[Any, Any], None]]]:
    """Every service of ``realloc.api``, and what adds a servicer of it to a server."""
    for found in pkgutil.walk_packages(realloc.api.__path__, "realloc.api."):
        if found.name.endswith("_pb2"):
            for name, descriptor in import_module(found.name).DESCRIPTOR.services_by_name.items():
                stubs = import_module(f"{found.name}_grpc")
                yield descriptor, getattr(stubs, f"add_{name}Servicer_to_server")


SERVICES = tuple(services())
METHODS = tuple(method for descriptor, _ in SERVICES for method in descriptor.methods)


async def outcome(channel: Channel, method: MethodDescriptor) -> ReallocError:
    """How a call with an empty request fails."""
    request = GetMessageClass(method.input_type)()
    path = f"/{method.containing_service.full_name}/{method.name}"
    serialize = type(request).SerializeToString
    try:
        if method.server_streaming:
            async for _ in channel.unary_stream(path, serialize)(request, timeout=60):
                pass
        else:
            await channel.unary_unary(path, serialize)(request, timeout=60)
    except ReallocError as error:
        return error
    raise AssertionError(f"{path} answered")
