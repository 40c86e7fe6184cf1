"""Asks plan-search for an execution plan."""

from typing import Any

from realloc.api.plan_search.v1 import plan_search_pb2
from realloc.api.scheduler.v1 import experiment_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import Unavailable
from realloc.core.mesh import Cluster
from realloc.core.plan import ExecutionPlan
from realloc.cost.recalibration import Corrections
from realloc.wire.convert import from_proto, to_proto
from services.scheduler.admission import Admission


async def search_plan(
    stub: Any,
    admission: Admission,
    cluster: Cluster,
    *,
    corrections: Corrections,
    seconds: float,
) -> ExecutionPlan:
    """The best plan that plan-search finds in the time.

    Args:
        corrections: what the calls of earlier jobs have taken.

    Raises:
        InvalidInput: no plan can fit.
        Unavailable: plan-search ended without a plan.
    """
    request = plan_search_pb2.SearchPlanRequest(
        experiment=to_proto(admission.experiment, experiment_pb2.Experiment),
        models=[
            plan_search_pb2.PlannedModel(
                model_id=model.model_id,
                hf_config=model.hf_config,
                head=types_pb2.Head.Value(f"HEAD_{model.architecture.head.name}"),
            )
            for model in admission.models
        ],
        cluster=to_proto(cluster, types_pb2.Cluster),
        seconds=seconds,
        corrections=corrections.to_json(),
        mean_prompt_tokens=sum(admission.data.lengths) / admission.data.num_rows,
    )
    best: ExecutionPlan | None = None
    async for response in stub.SearchPlan(request, timeout=seconds + 30.0):
        best = from_proto(response.plan, ExecutionPlan)
    if best is None:
        raise Unavailable("plan-search ended without a plan; submit again")
    return best
