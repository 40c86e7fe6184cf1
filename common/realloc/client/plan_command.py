"""``realloc plan``: an execution plan without any service, for any cluster.

realloc plan examples/ppo_70b.yaml --cluster 16xH100:8
realloc plan explain examples/ppo_70b.yaml --cluster 16xH100:8
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realloc.client.experiment_file import load_experiment, parse_pin
from realloc.client.plan_inputs import (
    architectures_of,
    parse_cluster,
    prompt_length,
    with_links,
    with_profile,
)
from realloc.core.errors import InvalidInput, raise_problems
from realloc.core.experiment import CallPin, Experiment
from realloc.core.settings import GenerationPlacement, PlacementSettings
from realloc.dataflow.catalog import build_graph
from realloc.dataflow.graph import DataflowGraph
from realloc.search.constraints import PlanConstraints
from realloc.search.task import PlanTask, workloads_of

if TYPE_CHECKING:  # these need the compiler, which --help and wrong inputs do not wait for
    from realloc.search.front import Objective, PlanFront
    from realloc.search.planning import Effort, PlannedIteration


def plan(arguments: argparse.Namespace) -> int:
    """Search a plan and show it."""
    explains, path = _words(arguments.words)
    if explains and arguments.pareto:
        raise InvalidInput.at("--pareto", "shows many plans; explain is about one")
    task, note = _task(arguments, path)
    if arguments.pareto or arguments.objective == "cost":
        front = _search_front(task, arguments)
        best = front.best(_objective(arguments))
    else:
        front, best = None, _search(task, arguments)
    _write_files(best, front, arguments)
    if explains:
        return _explain(best, arguments)
    if arguments.json:
        from realloc.client.plan_values import front_as_json, plan_as_json

        print(
            json.dumps(front_as_json(front) if front and arguments.pareto else plan_as_json(best))
        )
        return 0
    from realloc.client.plan_text import render_front, render_plan

    print(f"{path} on {arguments.cluster}; {note}\n")
    if front is not None:
        print(render_front(front))
    if not arguments.pareto:
        print(render_plan(best), end="")
    return 0


def _words(words: list[str]) -> tuple[bool, str]:
    explains = len(words) > 1 and words[0] == "explain"
    if len(words) != 1 + explains:
        raise InvalidInput.at("plan", f"takes one experiment, not {' '.join(words)}")
    return explains, words[-1]


def _task(arguments: argparse.Namespace, path: str) -> tuple[PlanTask, str]:
    """The task, and a remark on what had to be assumed."""
    experiment = load_experiment(path)
    raise_problems(experiment.problems())
    planned = parse_cluster(arguments.cluster)
    if arguments.profile is not None:
        planned = with_profile(planned, arguments.profile)
    if arguments.links is not None:
        planned = with_links(planned, arguments.links)
    graph = build_graph(experiment)
    prompts = prompt_length(experiment, arguments.prompt_tokens)
    if not 0 < arguments.seconds <= 3600:
        raise InvalidInput.at("--seconds", f"is {arguments.seconds:g}; give 0 to 3600")
    task = PlanTask(
        graph=graph,
        architectures=architectures_of(experiment, graph),
        workloads=workloads_of(
            experiment,
            graph,
            prompt_tokens=prompts.tokens,
            mean_response_tokens=arguments.response_tokens,
        ),
        cluster=planned.cluster,
        hardware=planned.hardware,
        node_hardware=planned.node_hardware,
        constraints=PlanConstraints(
            pins=_pins(experiment, graph, arguments),
            placement=_placement(experiment.placement, arguments),
        ),
    )
    return task, f"prompts of {prompts.tokens:.0f} tokens ({prompts.source})"


def _pins(
    experiment: Experiment, graph: DataflowGraph, arguments: argparse.Namespace
) -> tuple[CallPin, ...]:
    """The experiment's pins, but for calls that only evaluate: they are in no iteration; and
    those of the command line, which come first."""
    calls = {call.name for call in graph.calls}
    evaluates = {call.name for call in graph.placed_calls()} - calls
    given = [_pin(text) for text in arguments.pin]
    over = evaluates | {pin.call for pin in given}
    kept = () if arguments.ignore_pins else experiment.pins
    return (*given, *(pin for pin in kept if pin.call not in over))


def _pin(text: str) -> CallPin:
    call, equals, place = text.partition("=")
    if not equals:
        raise InvalidInput.at("--pin", f"{text!r} is not of the form actor_gen=d2t4p1@0-7")
    return parse_pin(call, place)


def _placement(given: PlacementSettings, arguments: argparse.Namespace) -> PlacementSettings:
    """The experiment's settings, with what the command line says instead."""
    changes: dict[str, Any] = {
        "max_tensor": arguments.max_tensor,
        "headroom": arguments.headroom,
        "avoided_nodes": None if arguments.avoid is None else tuple(arguments.avoid),
        "keep_on_device": arguments.keep_on_device or None,
    }
    if arguments.generation:
        changes["generation"] = GenerationPlacement(arguments.generation)
    return replace(given, **{name: each for name, each in changes.items() if each is not None})


def _search(task: PlanTask, arguments: argparse.Namespace) -> "PlannedIteration":
    effort = _effort(arguments)
    from realloc.search.planning import plan_task

    return plan_task(task, effort)


def _search_front(task: PlanTask, arguments: argparse.Namespace) -> "PlanFront":
    effort = _effort(arguments)
    from realloc.search.front import plan_front

    return plan_front(task, effort)


def _objective(arguments: argparse.Namespace) -> "Objective":
    from realloc.search.front import Objective

    return Objective(arguments.objective)


def _effort(arguments: argparse.Namespace) -> "Effort":
    """How to search, with a searcher that is compiled."""
    try:
        from realloc.search.planning import Effort
        from realloc.search.searchers import searcher_named, warm_up
    except ImportError as error:
        raise InvalidInput.at(
            "plan", f"needs {error.name}; install it: pip install 'realloc[plan]'"
        ) from error
    searcher = searcher_named(arguments.searcher)
    warm_up(searcher)
    return Effort(
        searcher=searcher,
        seconds=arguments.seconds,
        seed=arguments.seed,
        staleness=arguments.staleness,
    )


def _write_files(
    planned: "PlannedIteration", front: "PlanFront | None", arguments: argparse.Namespace
) -> None:
    from realloc.client.plan_values import plan_as_trace

    if arguments.trace:
        _write(arguments.trace, json.dumps(plan_as_trace(planned)), "--trace")
    if arguments.html:
        from realloc.client.plan_page import render_page

        _write(arguments.html, render_page(planned, front), "--html")


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInput.at(option, f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)


def _explain(planned: "PlannedIteration", arguments: argparse.Namespace) -> int:
    from realloc.search.explanation import explain_plan

    explanations = explain_plan(planned)
    if arguments.json:
        lines = [{"call": each.chosen.call, "text": str(each)} for each in explanations]
        print(json.dumps(lines))
        return 0
    for explanation in explanations:
        print(explanation)
    return 0
