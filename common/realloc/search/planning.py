"""From a task to the best plan that a search finds, and how it compares."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from realloc.core.errors import InvalidInput
from realloc.core.plan import ExecutionPlan
from realloc.core.settings import GenerationPlacement
from realloc.cost.simulator import SimulationRules, Timeline, peak_bytes
from realloc.search.constraints import PlanConstraints
from realloc.search.construction import PlanSpace, build_space
from realloc.search.heuristic import HeuristicSearcher
from realloc.search.memory import smallest_memory
from realloc.search.options import PlanOption
from realloc.search.result import Searcher, SearchResult, search_to_end
from realloc.search.task import PlanTask

_MOST_NODES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How a search is to be done."""

    searcher: Searcher
    seconds: float
    seed: int = 0
    staleness: int = 0
    """η: versions by which generation may lag behind training."""

    @property
    def rules(self) -> SimulationRules:
        return SimulationRules(staleness=self.staleness)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedIteration:
    """The best plan found."""

    space: PlanSpace
    rules: SimulationRules
    result: SearchResult
    heuristic_seconds: float
    """Of the best symmetric plan on the same space; see `realloc.search.heuristic`."""

    @property
    def chosen(self) -> tuple[PlanOption, ...]:
        """An option per call, in call order."""
        return tuple(self.space.options[option] for option in self.result.options)

    @property
    def plan(self) -> ExecutionPlan:
        return self.space.plan(self.result.options, self.result.seconds)

    @property
    def seconds(self) -> float:
        """Per iteration."""
        return self.result.seconds

    @property
    def speedup(self) -> float:
        """Over the heuristic plan."""
        return self.heuristic_seconds / self.result.seconds

    def timeline(self, iterations: int | None = None) -> Timeline:
        """The simulated timeline, of fewer iterations where wanted."""
        rules = replace(self.rules, iterations=iterations or self.rules.iterations)
        return self.space.problem.simulate(self.result.options, rules)

    def device_bytes(self) -> list[int]:
        """[devices], predicted peak bytes of tensors on each."""
        problem = self.space.problem
        placed = tuple(
            replace(
                call,
                resident_bytes=option.cost.resident_bytes,
                active_bytes=option.cost.active_bytes,
            )
            for call, option in zip(problem.place(self.result.options), self.chosen, strict=True)
        )
        return peak_bytes(placed, problem.num_devices)

    @property
    def num_devices(self) -> int:
        """Devices that some call uses."""
        return len({device for option in self.chosen for device in option.mesh.devices})

    @property
    def cost(self) -> float:
        """Device-seconds per sample: the rows of an iteration share those of its devices."""
        rows = max(work.num_rows for work in self.space.task.workloads.values())
        return self.num_devices * self.result.seconds / rows


def plan_task(task: PlanTask, effort: Effort, *, advises: bool = True) -> PlannedIteration:
    """Search a plan.

    Args:
        advises: where memory is too small, look for the smallest cluster that would do.

    Raises:
        InvalidInput: no plan fits: the message names the smallest cluster that would do; or
            constraints contradict themselves.
    """
    try:
        variants = list(_variants(task))
        found = [
            _search(each, replace(effort, seconds=effort.seconds / len(variants)))
            for each in variants
        ]
    except InvalidInput as error:
        raise (_with_advice(task, error) if advises else error) from error
    best = min(found, key=lambda each: each.result.seconds)
    if len(found) == 1:
        return best
    # A bound holds for all variants only as far as it holds for each.
    bound = min(each.result.lower_bound for each in found)
    return replace(best, result=replace(best.result, lower_bound=bound))


def _search(task: PlanTask, effort: Effort) -> PlannedIteration:
    space = build_space(task)
    rules = effort.rules
    heuristic = search_to_end(HeuristicSearcher(), space.problem, seconds=60.0, rules=rules)
    result = search_to_end(
        effort.searcher, space.problem, seconds=effort.seconds, seed=effort.seed, rules=rules
    )
    return PlannedIteration(
        space=space, rules=rules, result=result, heuristic_seconds=heuristic.seconds
    )


def _variants(task: PlanTask) -> Iterator[PlanTask]:
    """The task itself; or, with disjoint generation, one per split of the cluster that works.

    Raises:
        InvalidInput: no split works; why the last one does not.
    """
    if task.constraints.placement.generation is not GenerationPlacement.DISJOINT:
        yield task
        return
    devices = task.cluster.num_devices
    failure: InvalidInput | None = None
    works = False
    for split in sorted({max(1, devices * eighths // 8) for eighths in range(1, 8)}):
        variant = replace(task, generation_devices=split)
        try:
            space = build_space(variant, with_moves=False)
        except InvalidInput as error:
            failure = error
            continue
        if smallest_memory(space.problem)[0] <= task.usable_bytes:
            works = True
            yield variant
    if not works:
        raise failure or InvalidInput.at("generation", "disjoint from training, no plan fits")


def _with_advice(task: PlanTask, error: InvalidInput) -> InvalidInput:
    """The same error; where memory is the reason, with the smallest cluster that would do."""
    texts = [str(problem) for problem in error.problems]
    if not any("GiB" in text for text in texts) or task.constraints.pins or task.node_hardware:
        return error
    nodes = smallest_cluster(task)
    cluster = task.cluster
    kind, size = cluster.device_kind, cluster.devices_per_node
    have = f"{cluster.num_nodes}x{kind}:{size}"
    if nodes == 0:
        return InvalidInput.at(
            "cluster",
            f"{have} has too little memory, and so have {_MOST_NODES} such nodes: {texts[0]}",
        )
    return InvalidInput.at(
        "cluster",
        f"{have} has too little memory; the smallest that would do is {nodes}x{kind}:{size}. "
        f"{texts[0]}",
    )


def smallest_cluster(task: PlanTask) -> int:
    """The fewest nodes of this kind on which some plan fits; 0 where none does.

    Memory needs fall as nodes are added, so that doubling and bisection find it.
    """
    low, high = 0, 1
    while not _fits(task, high):
        low, high = high, 2 * high
        if high > _MOST_NODES:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(task, middle):
            high = middle
        else:
            low = middle
    return high


def _fits(task: PlanTask, nodes: int) -> bool:
    cluster = replace(task.cluster, num_nodes=nodes)
    placement = replace(
        task.constraints.placement, avoided_nodes=(), generation=GenerationPlacement.ANY
    )
    constraints = PlanConstraints(placement=placement)
    try:
        space = build_space(
            replace(task, cluster=cluster, constraints=constraints), with_moves=False
        )
    except InvalidInput:
        return False
    return smallest_memory(space.problem)[0] <= task.usable_bytes
