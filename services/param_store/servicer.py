"""ParamStoreService: parse, call, answer."""

from collections.abc import AsyncIterator
from typing import Any

from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.api.param_store.v1 import param_store_pb2_grpc
from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout
from realloc.wire.convert import from_proto, to_proto
from services.param_store.model import Model, PlacedLayout
from services.param_store.reallocator import ReallocationOrder, Reallocator
from services.param_store.registry import Registry


class ParamStoreServicer(param_store_pb2_grpc.ParamStoreServiceServicer):
    """Answers from the registry; reallocations go through the reallocator."""

    def __init__(self, registry: Registry, reallocator: Reallocator) -> None:
        self._registry = registry
        self._reallocator = reallocator

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
        plan = await self._reallocator.plan(request.job_id, request.model_id, _target(request))
        return pb.PlanReallocationResponse(
            traffic=to_proto(plan.traffic, pb.Traffic),
            num_endpoints=len(plan.endpoints),
            num_rounds=plan.programs[0].num_rounds,
        )

    async def Reallocate(
        self, request: pb.ReallocateRequest, context: Any
    ) -> pb.ReallocateResponse:
        if not request.timeout_seconds > 0:
            raise InvalidInput.at("timeout_seconds", "must be positive")
        if not request.request_id:
            raise InvalidInput.at("request_id", "is empty; it makes the request idempotent")
        done = await self._reallocator.reallocate(
            ReallocationOrder(
                request_id=request.request_id,
                job_id=request.job_id,
                model_id=request.model_id,
                target=_target(request),
                weight_version=request.weight_version,
                sequences=dict(request.sequences),
                timeout_seconds=request.timeout_seconds,
            )
        )
        return pb.ReallocateResponse(reallocation=to_proto(done, pb.Reallocation))

    async def ReleaseJob(
        self, request: pb.ReleaseJobRequest, context: Any
    ) -> pb.ReleaseJobResponse:
        await self._registry.release(request.job_id)
        self._reallocator.forget(request.job_id)
        return pb.ReleaseJobResponse()


def _target(request: pb.PlanReallocationRequest | pb.ReallocateRequest) -> PlacedLayout:
    layout = from_proto(request.target, Layout, "target")
    return PlacedLayout(layout=layout, shards=tuple(request.shards))
