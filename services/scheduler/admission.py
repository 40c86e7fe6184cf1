"""Checks an experiment before any time is spent: values, files, reward function, pins."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realloc.core.checkpoint_folder import CheckpointFolder
from realloc.core.confinement import lies_below
from realloc.core.data_file import DataFile, checked_folder
from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.experiment import Experiment, ModelSettings
from realloc.core.layout import Layout, LayoutKind
from realloc.core.mesh import Cluster
from realloc.core.model import (
    Head,
    ModelArchitecture,
    check_computable,
    check_known_family,
)
from realloc.core.reward_function import check_reward_function
from realloc.core.strategy import ParallelStrategy
from realloc.dataflow.catalog import ALGORITHMS, build_graph
from realloc.dataflow.graph import DataflowGraph
from realloc.reallocation.families import KNOWN_FAMILIES, canonical_tensors
from realloc.reallocation.frozen import check_frozen, unknown_names

_SAVED_BYTES = 12
"""Of a trained parameter in a checkpoint: float32 master weight and two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedModel:
    """A model of the graph with its configuration read."""

    model_id: str
    settings: ModelSettings
    hf_config: str
    architecture: ModelArchitecture
    trains: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Admission:
    """An experiment that passed: its graph, its models, its data."""

    experiment: Experiment
    graph: DataflowGraph
    models: tuple[AdmittedModel, ...]
    data: DataFile
    evaluation: DataFile | None

    @property
    def actor(self) -> AdmittedModel:
        return next(model for model in self.models if model.model_id == "actor")


def admit(
    experiment: Experiment,
    cluster: Cluster,
    *,
    reward_roots: Sequence[Path],
    output_roots: Sequence[Path] = (),
) -> Admission:
    """Check everything that can be checked without a device.

    Args:
        reward_roots: folders that reward functions may lie in.
        output_roots: folders that outputs and checkpoints may lie in; empty for any.

    Raises:
        InvalidInput: all problems, each with the path of its field.
    """
    problems = _Problems(list(experiment.problems()))
    if experiment.algorithm not in ALGORITHMS:
        with problems.under(""):
            build_graph(experiment)
        raise_problems(problems.found)
    graph = build_graph(experiment)
    models = []
    for model in graph.models:
        with problems.under(""):
            models.append(_admit_model(experiment, model.model_id, model.head, model.trains))
    problems.found += _pin_problems(experiment, graph, cluster)
    problems.found += _stray_folders(experiment, output_roots)
    problems.found += _checkpoint_problems(experiment, models)
    required = ("prompt", "completion") if experiment.algorithm == "sft" else ("prompt",)
    data = problems.collect(
        "data.path", lambda: DataFile.scan(experiment.data.path, required=required)
    )
    evaluation = None
    if experiment.evaluation is not None:
        path = experiment.evaluation.path
        evaluation = problems.collect("evaluation.path", lambda: DataFile.scan(path))
    needs_reward = experiment.evaluation is not None or (
        experiment.algorithm == "ppo" and experiment.reward_model is None
    )
    if needs_reward:
        with problems.under(""):
            check_reward_function(experiment.reward.function, reward_roots)
    raise_problems(dict.fromkeys(problems.found))
    assert data is not None
    return Admission(
        experiment=experiment,
        graph=graph,
        models=tuple(models),
        data=data,
        evaluation=evaluation,
    )


class _Problems:
    """Problems found so far; each check adds its own and lets the next one run."""

    def __init__(self, found: list[Problem]) -> None:
        self.found = found

    @contextmanager
    def under(self, path: str) -> Iterator[None]:
        """Collect what a check raises, its paths below `path`."""
        try:
            yield
        except InvalidInput as error:
            for problem in error.problems:
                where = ": ".join(part for part in (path, problem.path) if part)
                self.found.append(replace(problem, path=where))

    def collect(self, path: str, check: Callable[[], DataFile]) -> DataFile | None:
        """The result of a check, or None with its problems collected."""
        with self.under(path):
            return check()
        return None


def _admit_model(experiment: Experiment, model_id: str, head: Head, trains: bool) -> AdmittedModel:
    field, settings = _model_settings(experiment, model_id)
    folder = checked_folder(
        settings.checkpoint, f"{field}.checkpoint", weights=not settings.random_weights
    )
    text = (folder / "config.json").read_text()
    try:
        config: Mapping[str, Any] = json.loads(text)
        architecture = ModelArchitecture.from_hf_config(config, head)
        check_known_family(architecture, frozenset(KNOWN_FAMILIES))
        check_computable(config)
    except ValueError as error:
        raise InvalidInput.at(f"{field}.checkpoint", f"{folder}/config.json: {error}") from error
    except InvalidInput as error:
        raise InvalidInput(
            *(
                Problem(f"{field}.checkpoint", f"{folder}/config.json: {problem}")
                for problem in error.problems
            )
        ) from error
    if trains and field == model_id:  # a critic that begins as the actor may lack what is frozen
        _check_frozen(f"{field}.optimizer.frozen", architecture, settings.optimizer.frozen)
    return AdmittedModel(
        model_id=model_id,
        settings=settings,
        hf_config=text,
        architecture=architecture.with_head(head),
        trains=trains,
    )


def _check_frozen(path: str, architecture: ModelArchitecture, names: Sequence[str]) -> None:
    """Refuse names of no tensor, and what no layout could leave alone."""
    raise_problems(
        Problem(f"{path}[{position}]", f"{names[position]!r} names no tensor or layer of the model")
        for position in unknown_names(architecture, names)
    )
    if names:
        whole = Layout(kind=LayoutKind.MEGATRON, strategy=ParallelStrategy(), devices=(0,))
        try:
            check_frozen(architecture, whole, names)
        except InvalidInput as error:
            raise InvalidInput(*(replace(each, path=path) for each in error.problems)) from error


def _model_settings(experiment: Experiment, model_id: str) -> tuple[str, ModelSettings]:
    """Where a model of the graph is configured; critic and ref begin as the actor."""
    field = "reward_model" if model_id == "reward" else model_id
    settings: ModelSettings | None = getattr(experiment, field)
    return (field, settings) if settings is not None else ("actor", experiment.actor)


def _stray_folders(experiment: Experiment, roots: Sequence[Path]) -> Iterator[Problem]:
    """What a job would write outside the folders that it may write into."""
    given = {"output": experiment.output, "checkpoint.folder": experiment.checkpoint.folder}
    for field, folder in given.items():
        if folder and roots and not lies_below(Path(folder), roots):
            yield Problem(
                field,
                f"{folder} lies outside the folders that jobs may write into: "
                f"{', '.join(map(str, roots))}",
            )


def _checkpoint_problems(
    experiment: Experiment, models: Sequence[AdmittedModel]
) -> Iterator[Problem]:
    """The folder can be written, and has room for the checkpoints that are kept and the next."""
    settings = experiment.checkpoint
    if not settings.folder:
        return
    folder = Path(settings.folder)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Problem("checkpoint.folder", f"{folder} cannot be written: see {there}")
        return
    each = sum(
        _SAVED_BYTES * tensor.num_elements
        for model in models
        if model.trains
        for tensor in canonical_tensors(model.architecture)
    )
    needed = each * (settings.keep + 1) - CheckpointFolder(folder).num_bytes()
    free = shutil.disk_usage(there).free
    if needed > free:
        yield Problem(
            "checkpoint.folder",
            f"{folder} has {free / 2**30:.1f} GiB free and {settings.keep + 1} checkpoints of "
            f"{each / 2**30:.1f} GiB need {needed / 2**30:.1f} GiB more; free some or keep fewer",
        )


def _pin_problems(
    experiment: Experiment, graph: DataflowGraph, cluster: Cluster
) -> Iterator[Problem]:
    names = [call.name for call in graph.placed_calls()]
    for index, pin in enumerate(experiment.pins):
        if pin.call not in names:
            yield Problem(f"pins[{index}].call", f"{pin.call!r} is none of {', '.join(names)}")
        if pin.mesh is None:
            continue
        last = pin.mesh.first_device + pin.mesh.num_devices - 1
        if last >= cluster.num_devices:
            yield Problem(
                f"pins[{index}].mesh",
                f"names device {last} and the cluster has {cluster.num_devices}, counted from 0",
            )
        elif pin.mesh not in cluster.meshes():
            yield Problem(
                f"pins[{index}].mesh",
                f"{pin.mesh} is neither an aligned power of two within a node nor whole nodes",
            )
