"""PlanSearchService: parse, call, answer."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.api.plan_search.v1 import plan_search_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import InvalidInput, ResourceExhausted
from realloc.core.experiment import Experiment
from realloc.core.mesh import Cluster
from realloc.core.model import Head, ModelArchitecture
from realloc.core.plan import ExecutionPlan
from realloc.cost.profile_file import profile_from_json
from realloc.cost.profile_fit import fit_profile
from realloc.cost.recalibration import Corrections
from realloc.dataflow.catalog import build_graph
from realloc.telemetry.names import Metric, Span
from realloc.telemetry.spans import record, span
from realloc.wire.convert import from_proto, to_proto
from services.plan_search.answers import Answers, content_key
from services.plan_search.config import PlanSearchConfig
from services.plan_search.plan_search import FoundPlan, PlanSearch, estimate
from services.plan_search.planning_request import PlanningRequest
from services.plan_search.profiles import Profiles


class PlanSearchServicer(plan_search_pb2_grpc.PlanSearchServiceServicer):
    """A search runs beside the event loop, and ends when its caller leaves."""

    def __init__(self, search: PlanSearch, profiles: Profiles, config: PlanSearchConfig) -> None:
        self._search = search
        self._profiles = profiles
        self._config = config
        self._answers = Answers(config.kept_answers)
        self._running = 0

    async def SearchPlan(
        self, request: pb.SearchPlanRequest, context: Any
    ) -> AsyncGenerator[pb.SearchPlanResponse, None]:
        most = self._config.max_search_seconds
        if not 0 < request.seconds <= most:
            raise InvalidInput.at("seconds", f"is {request.seconds}; give 0 to {most}")
        profile = await self._profiles.get(request.profile) if request.profile else ""
        key = content_key(request, profile)
        if (known := self._answers.get(key)) is not None:
            yield known
            return
        answer, started = None, time.monotonic()
        async with aclosing(
            self._searched(self._request(request, profile), request.seconds)
        ) as found:
            async for answer in found:
                yield answer
        record(Metric.SEARCH_SECONDS, time.monotonic() - started)
        if answer is not None and self._search.is_compiled:
            self._answers.put(key, answer)

    async def EstimatePlan(
        self, request: pb.EstimatePlanRequest, context: Any
    ) -> pb.EstimatePlanResponse:
        given = from_proto(request.plan, ExecutionPlan, "plan")
        profile = await self._profiles.get(request.profile) if request.profile else ""
        plan = await asyncio.to_thread(estimate, self._request(request, profile), given)
        return pb.EstimatePlanResponse(plan=to_proto(plan, types_pb2.ExecutionPlan))

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: Any
    ) -> pb.ListProfilesResponse:
        names = [name for name in await self._profiles.names() if name > request.page_token]
        size = min(request.page_size or _PAGE, _PAGE)
        if size < 0:
            raise InvalidInput.at("page_size", f"is {size} and must not be negative")
        page = names[:size]
        return pb.ListProfilesResponse(
            profiles=[pb.Profile(name=name) for name in page],
            next_page_token=page[-1] if len(names) > len(page) else "",
        )

    async def GetProfile(
        self, request: pb.GetProfileRequest, context: Any
    ) -> pb.GetProfileResponse:
        content = await self._profiles.get(request.name)
        return pb.GetProfileResponse(profile=pb.Profile(name=request.name, content=content))

    async def PutProfile(
        self, request: pb.PutProfileRequest, context: Any
    ) -> pb.PutProfileResponse:
        await self._profiles.put(request.profile.name, request.profile.content)
        return pb.PutProfileResponse(profile=request.profile)

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: Any
    ) -> pb.DeleteProfileResponse:
        await self._profiles.delete(request.name)
        return pb.DeleteProfileResponse()

    async def _searched(
        self, request: PlanningRequest, seconds: float
    ) -> AsyncGenerator[pb.SearchPlanResponse, None]:
        """The answers of one search; its thread is told when nobody waits for them any more."""
        if self._running >= self._config.max_searches:
            raise ResourceExhausted(
                f"{self._running} searches run, as many as may; ask again when one has ended"
            )
        self._running += 1
        cancelled = threading.Event()
        try:
            plans = self._search.plans(request, seconds=seconds, cancelled=cancelled)
            with span(Span.SEARCH):
                while (found := await asyncio.to_thread(next, plans, None)) is not None:
                    yield _answer(found)
        finally:
            cancelled.set()
            self._running -= 1

    def _request(
        self, request: pb.SearchPlanRequest | pb.EstimatePlanRequest, profile: str
    ) -> PlanningRequest:
        experiment = from_proto(request.experiment, Experiment, "experiment")
        cluster = from_proto(request.cluster, Cluster, "cluster")
        hardware = self._search.hardware(cluster)
        if profile:
            named = fit_profile(profile_from_json(profile)).hardware
            hardware = replace(named, network=hardware.network).in_cluster(cluster)
        return PlanningRequest(
            experiment=experiment,
            graph=build_graph(experiment),
            architectures={model.model_id: _architecture(model) for model in request.models},
            cluster=cluster,
            hardware=hardware,
            mean_prompt_tokens=request.mean_prompt_tokens,
            corrections=_corrections(request.corrections),
        )


_PAGE = 100
"""Most profiles of one page."""


def _answer(found: FoundPlan) -> pb.SearchPlanResponse:
    return pb.SearchPlanResponse(
        plan=to_proto(found.plan, types_pb2.ExecutionPlan),
        num_evaluations=found.num_evaluations,
        lower_bound=found.lower_bound,
    )


def _corrections(text: str) -> Corrections:
    return Corrections.from_json(text) if text else Corrections()


def _architecture(model: pb.PlannedModel) -> ModelArchitecture:
    head = Head[types_pb2.Head.Name(model.head).removeprefix("HEAD_")]
    try:
        config = json.loads(model.hf_config)
    except ValueError as error:
        raise InvalidInput.at(
            f"models.{model.model_id}.hf_config", f"is not JSON: {error}"
        ) from error
    return ModelArchitecture.from_hf_config(config, head).with_head(head)
