"""PlanSearchService: parse, call, answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.api.plan_search.v1 import plan_search_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import InvalidInput
from realloc.core.experiment import Experiment
from realloc.core.mesh import Cluster
from realloc.core.model import Head, ModelArchitecture
from realloc.core.plan import ExecutionPlan
from realloc.dataflow.catalog import build_graph
from realloc.telemetry.names import Metric, Span
from realloc.telemetry.spans import record, span
from realloc.wire.convert import from_proto, to_proto
from services.plan_search.plan_search import PlanSearch, estimate
from services.plan_search.planner import PlanningTask


class PlanSearchServicer(plan_search_pb2_grpc.PlanSearchServiceServicer):
    """Stateless; a search runs beside the event loop."""

    def __init__(self, search: PlanSearch, max_search_seconds: float) -> None:
        self._search = search
        self._max_search_seconds = max_search_seconds

    async def SearchPlan(
        self, request: pb.SearchPlanRequest, context: Any
    ) -> AsyncIterator[pb.SearchPlanResponse]:
        if not 0 < request.seconds <= self._max_search_seconds:
            raise InvalidInput.at(
                "seconds", f"is {request.seconds}; give 0 to {self._max_search_seconds}"
            )
        started = time.monotonic()
        plans = self._search.plans(self._task(request), seconds=request.seconds)
        with span(Span.SEARCH):
            while (plan := await asyncio.to_thread(next, plans, None)) is not None:
                yield pb.SearchPlanResponse(plan=to_proto(plan, types_pb2.ExecutionPlan))
        record(Metric.SEARCH_SECONDS, time.monotonic() - started)

    async def EstimatePlan(
        self, request: pb.EstimatePlanRequest, context: Any
    ) -> pb.EstimatePlanResponse:
        given = from_proto(request.plan, ExecutionPlan, "plan")
        plan = await asyncio.to_thread(estimate, self._task(request), given)
        return pb.EstimatePlanResponse(plan=to_proto(plan, types_pb2.ExecutionPlan))

    def _task(self, request: pb.SearchPlanRequest | pb.EstimatePlanRequest) -> PlanningTask:
        experiment = from_proto(request.experiment, Experiment, "experiment")
        cluster = from_proto(request.cluster, Cluster, "cluster")
        return PlanningTask(
            experiment=experiment,
            graph=build_graph(experiment),
            architectures={model.model_id: _architecture(model) for model in request.models},
            cluster=cluster,
            hardware=self._search.hardware(cluster),
            mean_prompt_tokens=request.mean_prompt_tokens,
        )


def _architecture(model: pb.PlannedModel) -> ModelArchitecture:
    head = Head[types_pb2.Head.Name(model.head).removeprefix("HEAD_")]
    try:
        config = json.loads(model.hf_config)
    except ValueError as error:
        raise InvalidInput.at(
            f"models.{model.model_id}.hf_config", f"is not JSON: {error}"
        ) from error
    return ModelArchitecture.from_hf_config(config, head).with_head(head)
