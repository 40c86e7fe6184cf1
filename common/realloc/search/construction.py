"""From a task to a `SearchProblem`: options numbered, layouts numbered, moves costed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realloc.core.errors import InvalidInput
from realloc.core.layout import LayoutKind
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.core.settings import GenerationPlacement
from realloc.cost.memory import total_weight_bytes
from realloc.cost.moves import PlacedLayout, reallocation_matrix
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall
from realloc.search.options import PlanOption, options_of
from realloc.search.problem import KINDS, Floats, SearchProblem
from realloc.search.slowest import slowest_of
from realloc.search.task import PlanTask

_IMPOSSIBLE_SECONDS = 1e9
"""Of a move that the system cannot make, so that no plan which needs it is ever the best."""

_LayoutKey = tuple[LayoutKind, PlacedLayout]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanSpace:
    """A search problem and what its numbers stand for."""

    task: PlanTask
    options: tuple[PlanOption, ...]
    """[O]"""
    problem: SearchProblem

    def plan(self, options: Sequence[int], seconds: float) -> ExecutionPlan:
        """The execution plan that some options are."""
        chosen = [self.options[option] for option in options]
        return ExecutionPlan(
            placements=tuple(
                CallPlacement(
                    call=option.call,
                    mesh=option.mesh,
                    strategy=option.strategy,
                    predicted_seconds=option.seconds,
                    predicted_peak_bytes=option.cost.peak_bytes,
                    model_seconds=option.cost.seconds,
                )
                for option in chosen
            ),
            predicted_seconds=seconds,
            predicted_reallocation_seconds=self.reallocation_seconds(options),
            model_reallocation_seconds=sum(
                seconds / self.task.move_correction(model)
                for model, seconds in self._moves(options).items()
            ),
        )

    def options_for(self, plan: ExecutionPlan) -> tuple[int, ...] | None:
        """The fastest option of each call at its placement in a plan; None where one has none."""
        found = []
        for index, call in enumerate(self.task.graph.calls):
            given = plan.placement(call.name)
            options = [
                int(option)
                for option in self.problem.options_of(index)
                if (self.options[option].mesh, self.options[option].strategy)
                == (given.mesh, given.strategy)
            ]
            if not options:
                return None
            found.append(min(options, key=lambda option: self.options[option].seconds))
        return tuple(found)

    def reallocation_seconds(self, options: Sequence[int]) -> float:
        """Seconds of all reallocations of one iteration, each distinct one once."""
        return sum(self._moves(options).values())

    def _moves(self, options: Sequence[int]) -> dict[str, float]:
        """Seconds of the reallocations of each model that has some."""
        problem, moves = self.problem, {}
        for call, option in enumerate(options):
            train = problem.train_call(call)
            if train < 0:
                continue
            model = int(problem.call_model[call])
            source = int(problem.option_layout[options[train]])
            target = int(problem.option_layout[option])
            moves[model, target] = float(problem.realloc_seconds[model][source, target])
        seconds: dict[str, float] = {}
        for (number, _), each in moves.items():
            name = self.task.graph.models[number].model_id
            seconds[name] = seconds.get(name, 0.0) + each
        return seconds


def build_space(task: PlanTask, *, with_moves: bool = True) -> PlanSpace:
    """The search problem of a task.

    Args:
        with_moves: False leaves reallocations at 0 seconds, for questions about memory only.

    Raises:
        InvalidInput: a constraint contradicts itself, or a call has no option that fits.
    """
    task.constraints.check(task.cluster, tuple(call.name for call in task.graph.placed_calls()))
    options: list[PlanOption] = []
    problems: list[InvalidInput] = []
    for call in task.graph.calls:
        try:
            options += [o for o in options_of(task, call) if _allowed(task, call, o)]
        except InvalidInput as error:
            problems.append(error)
    if problems:
        raise InvalidInput(*(each for error in problems for each in error.problems))
    for call in task.graph.calls:
        if not any(option.call == call.name for option in options):
            raise InvalidInput.at(
                f"pins.{call.name}" if task.pin_of(call) else "generation",
                f"{task.constraints.placement.generation.value} leaves {call.name} no mesh on "
                "which it fits",
            )
    return PlanSpace(task=task, options=tuple(options), problem=_problem(task, options, with_moves))


def _allowed(task: PlanTask, call: FunctionCall, option: PlanOption) -> bool:
    """Whether an option is where the user wants generation and its model's other calls.

    Colocated: generation and training both on all usable devices. Disjoint: on either side of
    a boundary between devices.
    """
    placement = task.constraints.placement.generation
    if placement is GenerationPlacement.ANY or not _generates(task.graph, call.model):
        return True
    if placement is GenerationPlacement.COLOCATED:
        meshes = task.meshes()
        largest = max(meshes, key=lambda mesh: mesh.num_devices)
        return call.kind is CallKind.INFERENCE or option.mesh == largest
    if call.kind is CallKind.GENERATE:
        return option.mesh.devices[-1] < task.generation_devices
    return option.mesh.first_device >= task.generation_devices


def _generates(graph: DataflowGraph, model: str) -> bool:
    return any(c.kind is CallKind.GENERATE and c.model == model for c in graph.calls)


def _problem(task: PlanTask, options: list[PlanOption], with_moves: bool) -> SearchProblem:
    graph, calls = task.graph, task.graph.calls
    position = {call.name: index for index, call in enumerate(calls)}
    models = {model.model_id: index for index, model in enumerate(graph.models)}
    trained = {call.model for call in calls if call.kind is CallKind.TRAIN}
    layouts: dict[str, dict[_LayoutKey, int]] = {model: {} for model in trained}
    numbers = []
    for option in options:
        call = calls[position[option.call]]
        numbers.append(_layout(layouts[call.model], call, option) if call.model in trained else -1)
    return SearchProblem(
        num_devices=task.cluster.num_devices,
        device_memory_bytes=task.usable_bytes,
        call_names=tuple(call.name for call in calls),
        call_model=np.array([models[call.model] for call in calls]),
        call_kind=np.array([KINDS.index(call.kind) for call in calls]),
        edges=np.array(
            [
                (position[before.name], position[call.name])
                for call in calls
                for before in graph.predecessors(call)
            ]
        ).reshape(-1, 2),
        option_call=np.array([position[option.call] for option in options]),
        option_first_device=np.array([option.mesh.first_device for option in options]),
        option_num_devices=np.array([option.mesh.num_devices for option in options]),
        option_seconds=np.array([option.seconds for option in options]),
        option_resident_bytes=np.array([_scaled(task, o, o.cost.resident_bytes) for o in options]),
        option_active_bytes=np.array([_scaled(task, o, o.cost.active_bytes) for o in options]),
        option_layout=np.array(numbers),
        realloc_seconds={
            models[model]: _moves(task, model, layouts[model], with_moves) for model in trained
        },
    )


def _scaled(task: PlanTask, option: PlanOption, size: int) -> int:
    """Bytes of an option in a problem whose devices are all as large as the largest.

    On smaller devices they grow in proportion, so what fits the problem fits every device. On a
    mesh over unlike devices they grow on all of them, which may refuse a plan that would fit
    the larger ones, and never accepts one that does not.
    """
    room, most = task.usable_on(task.hardware_on(option.mesh)), task.usable_bytes
    return size if room >= most else -(-size * most // max(1, room))


def _layout(known: dict[_LayoutKey, int], call: FunctionCall, option: PlanOption) -> int:
    """The number of an option's layout; engines keep weights of their own."""
    generates = call.kind is CallKind.GENERATE
    kind = LayoutKind.VLLM if generates else LayoutKind.MEGATRON
    key = (kind, PlacedLayout(mesh=option.mesh, strategy=option.strategy))
    return known.setdefault(key, len(known))


def _moves(task: PlanTask, model: str, layouts: dict[_LayoutKey, int], with_moves: bool) -> Floats:
    if not with_moves:
        return np.zeros((len(layouts), len(layouts)))
    workload = next(iter(task.workloads.values()))
    sources = [number for (kind, _), number in layouts.items() if kind is LayoutKind.MEGATRON]
    seconds = reallocation_matrix(
        sources,
        [layout for _, layout in layouts],
        total_weight_bytes(task.architectures[model], workload.element_bytes),
        task.cluster.num_devices,
        slowest_of(task.node_hardware or (task.hardware,)),
    )
    seconds *= task.move_correction(model)
    if task.rules.one_training_layout:
        seconds[np.ix_(sources, sources)] = _IMPOSSIBLE_SECONDS
        np.fill_diagonal(seconds, 0.0)
    return seconds
