"""ParamStoreService: parse, call, answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.api.param_store.v1 import param_store_pb2_grpc
from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout
from realloc.wire.convert import from_proto, to_proto
from services.param_store.leading import Leading
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import ReallocationOrder, TransferMode
from services.param_store.preview import Previews
from services.param_store.reallocator import Reallocator
from services.param_store.registry import Registry

_LEADER_SECONDS = 10.0
"""Longest wait for a leader; longer than the lease of one that died."""
_PROBE_SECONDS = 1.0
"""Longest wait for a connection to a leader that may have died."""


class ParamStoreServicer(param_store_pb2_grpc.ParamStoreServiceServicer):
    """Answers from the registry; what moves weights is done by the leader."""

    def __init__(
        self,
        registry: Registry,
        previews: Previews,
        leading: Leading,
        connect: Callable[[str], Any],
    ) -> None:
        self._registry = registry
        self._previews = previews
        self._leading = leading
        self._connect = connect

    async def RegisterModel(
        self, request: pb.RegisterModelRequest, context: Any
    ) -> pb.RegisterModelResponse:
        model = from_proto(request.model, Model, "model")
        if len(model.layouts) != 1:
            raise InvalidInput.at("model.layouts", f"has {len(model.layouts)} layouts, wanted one")
        known = await self._registry.register(model)
        return pb.RegisterModelResponse(model=to_proto(known, pb.Model))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        model = await self._registry.get(request.job_id, request.model_id)
        return pb.GetModelResponse(model=to_proto(model, pb.Model))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        models = await self._registry.list(request.job_id)
        return pb.ListModelsResponse(models=[to_proto(model, pb.Model) for model in models])

    async def WatchModel(
        self, request: pb.WatchModelRequest, context: Any
    ) -> AsyncIterator[pb.WatchModelResponse]:
        async for model in self._registry.watch(request.job_id, request.model_id):
            yield pb.WatchModelResponse(model=to_proto(model, pb.Model))

    async def PlanReallocation(
        self, request: pb.PlanReallocationRequest, context: Any
    ) -> pb.PlanReallocationResponse:
        preview = await self._previews.preview(
            request.job_id, request.model_id, _target(request), request.dtype or "float32"
        )
        return to_proto(preview, pb.PlanReallocationResponse)

    async def Reallocate(
        self, request: pb.ReallocateRequest, context: Any
    ) -> pb.ReallocateResponse:
        order = _order(request)
        leader = await self._leader()
        if not isinstance(leader, Reallocator):
            answer: pb.ReallocateResponse = await leader.Reallocate(
                request, timeout=context.time_remaining()
            )
            return answer
        done = await leader.reallocate(order)
        return pb.ReallocateResponse(reallocation=to_proto(done, pb.Reallocation))

    async def ReleaseJob(
        self, request: pb.ReleaseJobRequest, context: Any
    ) -> pb.ReleaseJobResponse:
        leader = await self._leader()
        if not isinstance(leader, Reallocator):
            released: pb.ReleaseJobResponse = await leader.ReleaseJob(
                request, timeout=context.time_remaining()
            )
            return released
        await leader.release(request.job_id, request.run_id)
        return pb.ReleaseJobResponse()

    async def _leader(self) -> Any:
        """This process's reallocator, or a stub of the param-store that leads."""
        deadline = time.monotonic() + _LEADER_SECONDS
        while True:
            leader = await self._leading.find(max(deadline - time.monotonic(), 0.0))
            if isinstance(leader, Reallocator):
                return leader
            channel = self._connect(leader)
            with suppress(TimeoutError):  # then it has died, and its lease ends soon
                async with asyncio.timeout(_PROBE_SECONDS):
                    await channel.channel_ready()
                    return param_store_pb2_grpc.ParamStoreServiceStub(channel)


def _order(request: pb.ReallocateRequest) -> ReallocationOrder:
    mode = TransferMode.ALL
    if request.mode == pb.TRANSFER_MODE_CHANGED:
        mode = TransferMode.CHANGED
    return ReallocationOrder(
        request_id=request.request_id,
        job_id=request.job_id,
        model_id=request.model_id,
        target=_target(request),
        weight_version=request.weight_version,
        timeout_seconds=request.timeout_seconds,
        dtype=request.dtype or "float32",
        mode=mode,
    )


def _target(request: pb.PlanReallocationRequest | pb.ReallocateRequest) -> PlacedLayout:
    layout = from_proto(request.target, Layout, "target")
    return PlacedLayout(layout=layout, shards=tuple(request.shards))
