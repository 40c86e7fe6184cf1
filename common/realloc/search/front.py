"""What more devices buy: plans on ever larger parts of a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from realloc.core.errors import InvalidInput
from realloc.search.planning import Effort, PlannedIteration, plan_task
from realloc.search.task import PlanTask

_EIGHTHS = 8
"""Of a cluster's nodes, besides the powers of two."""


class Objective(Enum):
    """What the best plan is best at."""

    SECONDS = "seconds"
    """Seconds per iteration."""
    COST = "cost"
    """Device-seconds per sample: as few devices as pay off."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanFront:
    """Plans of which none is both faster and cheaper than another, from slow to fast."""

    plans: tuple[PlannedIteration, ...]

    def best(self, objective: Objective) -> PlannedIteration:
        """The plan that is best at one thing; of equal ones the one on fewer devices."""
        if objective is Objective.SECONDS:
            return min(self.plans, key=lambda plan: (plan.seconds, plan.num_devices))
        return min(self.plans, key=lambda plan: (plan.cost, plan.num_devices))


def plan_front(task: PlanTask, effort: Effort) -> PlanFront:
    """The front over the first devices of a cluster, and more and more of them.

    The time is divided among the parts. On parts that are too small nothing is planned.

    Raises:
        InvalidInput: no plan fits the whole cluster, see `plan_task`.
    """
    limits = list(_limits(task))
    each = replace(effort, seconds=effort.seconds / len(limits))
    found = [plan_task(task, each)]
    for limit in limits[:-1]:
        try:
            found.append(plan_task(replace(task, device_limit=limit), each, advises=False))
        except InvalidInput:
            continue  # too small a part; the whole cluster has a plan
    return PlanFront(plans=tuple(_undominated(found)))


def _limits(task: PlanTask) -> Iterator[int]:
    """Numbers of devices worth trying; the last is all of them."""
    cluster, unit = task.cluster, max(1, task.cluster.num_nodes // _EIGHTHS)
    parts = {1 << k for k in range(cluster.devices_per_node.bit_length())}
    for nodes in range(1, cluster.num_nodes + 1):
        if nodes & (nodes - 1) == 0 or nodes % unit == 0:
            parts.add(nodes * cluster.devices_per_node)
    yield from sorted({part for part in parts if part < cluster.num_devices})
    yield cluster.num_devices


def _undominated(found: list[PlannedIteration]) -> Iterator[PlannedIteration]:
    """From slow and cheap to fast and dear."""
    kept: list[PlannedIteration] = []
    for plan in sorted(found, key=lambda plan: (plan.seconds, plan.cost)):
        if all(plan.cost < other.cost for other in kept):
            kept.append(plan)
    yield from reversed(kept)
