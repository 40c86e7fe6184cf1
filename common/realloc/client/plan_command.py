"""``realloc plan``: an execution plan without any service, for any cluster.

realloc plan examples/ppo_70b.yaml --cluster 16xH100:8
realloc plan explain examples/ppo_70b.yaml --cluster 16xH100:8
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from realloc.client.experiment_file import load_experiment
from realloc.client.plan_inputs import architectures_of, parse_cluster, prompt_length, with_links
from realloc.core.errors import InvalidInput, raise_problems
from realloc.core.experiment import CallPin, Experiment
from realloc.dataflow.catalog import build_graph
from realloc.dataflow.graph import DataflowGraph
from realloc.search.constraints import GenerationPlacement, PlanConstraints
from realloc.search.options import PlanTask, workloads_of


def plan(arguments: argparse.Namespace) -> int:
    """Search a plan and show it."""
    explains, path = _words(arguments.words)
    task, note = _task(arguments, path)
    planned = _search(task, arguments)
    _write_files(planned, arguments)
    if explains:
        return _explain(planned, arguments)
    if arguments.json:
        from realloc.client.plan_values import plan_as_json

        print(json.dumps(plan_as_json(planned)))
        return 0
    from realloc.client.plan_text import render_plan

    print(f"{path} on {arguments.cluster}; {note}\n")
    print(render_plan(planned), end="")
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
    planned = parse_cluster(arguments.cluster, arguments.profile)
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
        constraints=PlanConstraints(
            pins=() if arguments.ignore_pins else _pins(experiment, graph),
            generation=GenerationPlacement(arguments.generation),
            max_tensor=arguments.max_tensor,
            headroom=arguments.headroom,
            avoided_nodes=tuple(arguments.avoid),
        ),
    )
    return task, f"prompts of {prompts.tokens:.0f} tokens ({prompts.source})"


def _pins(experiment: Experiment, graph: DataflowGraph) -> tuple[CallPin, ...]:
    """The experiment's pins, but for calls that only evaluate: they are in no iteration."""
    calls = {call.name for call in graph.calls}
    evaluates = {call.name for call in graph.placed_calls()} - calls
    return tuple(pin for pin in experiment.pins if pin.call not in evaluates)


def _search(task: PlanTask, arguments: argparse.Namespace) -> Any:
    try:
        from realloc.search.planning import Effort, plan_task
        from realloc.search.searchers import searcher_named, warm_up
    except ImportError as error:
        raise InvalidInput.at(
            "plan", f"needs {error.name}; install it: pip install 'realloc[plan]'"
        ) from error
    searcher = searcher_named(arguments.searcher)
    warm_up(searcher)
    effort = Effort(
        searcher=searcher,
        seconds=arguments.seconds,
        seed=arguments.seed,
        staleness=arguments.staleness,
    )
    return plan_task(task, effort)


def _write_files(planned: Any, arguments: argparse.Namespace) -> None:
    from realloc.client.plan_values import plan_as_trace

    if arguments.trace:
        _write(arguments.trace, json.dumps(plan_as_trace(planned)), "--trace")
    if arguments.html:
        from realloc.client.plan_page import render_page

        _write(arguments.html, render_page(planned), "--html")


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInput.at(option, f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)


def _explain(planned: Any, arguments: argparse.Namespace) -> int:
    from realloc.search.explanation import explain_plan

    explanations = explain_plan(planned)
    if arguments.json:
        lines = [{"call": each.chosen.call, "text": str(each)} for each in explanations]
        print(json.dumps(lines))
        return 0
    for explanation in explanations:
        print(explanation)
    return 0
