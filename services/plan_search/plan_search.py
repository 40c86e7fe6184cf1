"""Searches execution plans: the simple plan at once, then better ones while time lasts."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin
from realloc.core.mesh import Cluster
from realloc.core.plan import ExecutionPlan
from realloc.cost.hardware import Hardware
from realloc.cost.profile_fit import profiled_hardware
from realloc.cost.simulator import SimulationRules
from realloc.search.constraints import PlanConstraints
from realloc.search.construction import PlanSpace, build_space
from realloc.search.options import PlanTask, SpaceRules, workloads_of
from realloc.search.searchers import searcher_named, warm_up
from services.plan_search.planner import PlanningTask, estimate_plan, groups, plan_experiment

_RULES = SpaceRules(micro_batches_per_call=False, one_training_layout=True, even_batches=False)
"""What the scheduler and the trainers can execute."""

_SEED = 0


class PlanSearch:
    """A searcher that is compiled in the background; until then only simple plans come."""

    def __init__(self, *, profile: str = "") -> None:
        """
        Args:
            profile: file with a profile of the devices; empty for presets.
        """
        self._profile = profile
        self._hardware: dict[str, Hardware] = {}
        self._searcher = searcher_named("default")
        self._compiled = threading.Event()

    def hardware(self, cluster: Cluster) -> Hardware:
        """What the cluster's devices can do.

        Raises:
            InvalidInput: an unknown kind, or an unreadable profile.
        """
        kind = cluster.device_kind
        if kind not in self._hardware:
            self._hardware[kind] = profiled_hardware(kind, self._profile)
        return self._hardware[kind].in_cluster(cluster)

    def warm_up(self) -> None:
        """Compile the searcher, or read it from the cache: up to a minute the first time."""
        warm_up(self._searcher)
        self._compiled.set()

    def plans(self, task: PlanningTask, *, seconds: float) -> Iterator[ExecutionPlan]:
        """Plans, each better than the one before.

        Raises:
            InvalidInput: a pin is not legal, or no plan fits the cluster.
        """
        simple = plan_experiment(task)
        space = _space(task, _user_pins(task, simple))
        options = space.options_for(simple) if space else None
        if space is None or options is None:
            yield simple
            return
        rules, problem = SimulationRules(), space.problem
        best = float("inf")
        if problem.peak_bytes(options) <= problem.device_memory_bytes:
            best = problem.simulate(options, rules).seconds
            yield _with_others(space.plan(options, best), simple)
        elif not self._compiled.wait(timeout=seconds):
            raise InvalidInput.at("plan", "the simple plan does not fit; try again in a minute")
        if not self._compiled.is_set() or problem.num_options == problem.num_calls:
            return
        for result in self._searcher.search(problem, seconds=seconds, seed=_SEED, rules=rules):
            if result.seconds < best:
                best = result.seconds
                yield _with_others(space.plan(result.options, best), simple)


def estimate(task: PlanningTask, plan: ExecutionPlan) -> ExecutionPlan:
    """A given plan with its predictions, simulated.

    Raises:
        InvalidInput: a placement is not legal.
    """
    checked = estimate_plan(task, plan)
    space = _space(task, _pins_of(checked, [call.name for call in task.graph.calls]))
    options = space.options_for(checked) if space else None
    if space is None or options is None:
        return checked
    seconds = space.problem.simulate(options).seconds
    return _with_others(space.plan(options, seconds), checked)


def _space(task: PlanningTask, pins: tuple[CallPin, ...]) -> PlanSpace | None:
    """The space of plans that can be executed; None where the model of it has none."""
    experiment, graph = task.experiment, task.graph
    plan_task = PlanTask(
        graph=graph,
        architectures=task.architectures,
        workloads=workloads_of(
            experiment, graph, prompt_tokens=task.mean_prompt_tokens, even_batches=False
        ),
        cluster=task.cluster,
        hardware=task.hardware,
        constraints=PlanConstraints(pins=pins),
        rules=_RULES,
    )
    try:
        return build_space(plan_task)
    except InvalidInput:
        # The simple planner has checked the pins: it has the last word on what is legal.
        return None


def _user_pins(task: PlanningTask, simple: ExecutionPlan) -> tuple[CallPin, ...]:
    """The user's pins, each for all calls that share the pinned call's placement."""
    pinned = {pin.call for pin in task.experiment.pins}
    in_iteration = {call.name for call in task.graph.calls}
    names: list[str] = []
    for calls in groups(task.graph):
        members = [call.name for call in calls]
        if pinned & set(members):
            names += [name for name in members if name in in_iteration]
    return _pins_of(simple, names)


def _pins_of(plan: ExecutionPlan, calls: Sequence[str]) -> tuple[CallPin, ...]:
    placements = [plan.placement(call) for call in calls]
    return tuple(CallPin(call=p.call, mesh=p.mesh, strategy=p.strategy) for p in placements)


def _with_others(plan: ExecutionPlan, simple: ExecutionPlan) -> ExecutionPlan:
    """With the placements of calls outside the iteration, such as an evaluation of its own."""
    names = {placement.call for placement in plan.placements}
    others = tuple(p for p in simple.placements if p.call not in names)
    moves = plan.predicted_reallocation_seconds or simple.predicted_reallocation_seconds
    return replace(
        plan,
        placements=plan.placements + others,
        predicted_reallocation_seconds=moves,
    )
