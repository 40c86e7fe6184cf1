"""Experiments as YAML files.

    name: arithmetic-ppo
    algorithm: ppo
    actor: {checkpoint: runs/sft, optimizer: {learning_rate: 1e-4}}
    data: {path: prompts.jsonl, batch_size: 128}
    checkpoint: {folder: runs/ppo-state, every: 10}
    pins:                                  # strategy @ first-last device; or one of the two
      actor_gen: d2t1p1@0-1
      actor_train: "@0-1"
    placement: {max_tensor: 4, headroom: 0.1}

Paths are relative to the working folder and are made absolute: services and clients share a
file system, but not a working folder.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from realloc.core.errors import InvalidInput, Problem
from realloc.core.experiment import CallPin, Experiment, ModelSettings
from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy
from realloc.plain_data import ConfigError, read

_PIN = re.compile(r"([^\s@]+)?(?:@(\d+)(?:-(\d+))?)?")


def load_experiment(path: str) -> Experiment:
    """Read an experiment.

    Raises:
        InvalidInput: the file cannot be read, or fields of it are unknown, missing or of
            another type; all at once.
    """
    try:
        text = Path(path).read_text()
        data = yaml.safe_load(text)
    except OSError as error:
        raise InvalidInput.at(path, f"cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidInput.at(path, f"is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInput.at(path, "is no mapping of fields")
    return parse_experiment(data, where=path)


def parse_experiment(data: Mapping[str, Any], *, where: str = "experiment") -> Experiment:
    """An experiment from plain data, paths made absolute; see the module's text."""
    pins = data.get("pins") or {}
    if not isinstance(pins, Mapping):
        raise InvalidInput.at("pins", "is no mapping of call: strategy@devices")
    plain = {**data, "pins": [_pin(call, text) for call, text in pins.items()]}
    try:
        experiment = read(Experiment, plain)
    except ConfigError as error:
        raise InvalidInput(
            *(Problem(f"{where}: {each.path}", each.reason) for each in error.problems)
        ) from error
    return absolute_paths(experiment)


def absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment with every path absolute."""
    function = experiment.reward.function
    evaluation = experiment.evaluation
    return replace(
        experiment,
        actor=_absolute_model(experiment.actor),
        critic=experiment.critic and _absolute_model(experiment.critic),
        ref=experiment.ref and _absolute_model(experiment.ref),
        reward_model=experiment.reward_model and _absolute_model(experiment.reward_model),
        data=replace(experiment.data, path=_absolute(experiment.data.path)),
        reward=replace(experiment.reward, function=_absolute(function)),
        evaluation=evaluation and replace(evaluation, path=_absolute(evaluation.path)),
        checkpoint=replace(experiment.checkpoint, folder=_absolute(experiment.checkpoint.folder)),
        output=_absolute(experiment.output),
    )


def _absolute_model(settings: ModelSettings) -> ModelSettings:
    return replace(settings, checkpoint=_absolute(settings.checkpoint))


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else path


def parse_pin(call: str, text: str) -> CallPin:
    """Read ``d2t1p1@0-1``, or one of its parts, ``d2t1p1`` or ``@0-1``.

    Raises:
        InvalidInput: it is of another form.
    """
    match = _PIN.fullmatch(text)
    try:
        strategy = ParallelStrategy.parse(match[1]) if match and match[1] else None
    except InvalidInput:
        match = None
    if match is None or not text:
        raise InvalidInput.at(
            f"pins.{call}", f"{text!r} is not of the form d2t1p1@0-1, d2t1p1 or @0-1"
        )
    mesh = None
    if match[2]:
        first, last = int(match[2]), int(match[3] or match[2])
        if last < first:
            raise InvalidInput.at(f"pins.{call}", f"{text!r} ends before it begins")
        mesh = DeviceMesh(first_device=first, num_devices=last - first + 1)
    return CallPin(call=call, mesh=mesh, strategy=strategy)


def _pin(call: str, text: Any) -> dict[str, Any]:
    pin = parse_pin(call, str(text))
    plain: dict[str, Any] = {"call": call}
    if pin.mesh:
        plain["mesh"] = asdict(pin.mesh)
    if pin.strategy:
        plain["strategy"] = asdict(pin.strategy)
    return plain
