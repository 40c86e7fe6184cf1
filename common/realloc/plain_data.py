"""Dataclasses from plain nested data, as YAML, JSON, the environment and arguments give it.

    value = read(Experiment, {"model": ...})

Everything wrong is reported in one `ConfigError`, each problem with where it stands.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Config = TypeVar("Config")

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NEEDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong with the configuration."""

    path: str
    """Where it stands: ``file.yaml: models.actor``, ``REALLOC_PORT`` or ``--port``."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class ConfigError(ValueError):
    """The configuration is wrong; every problem is listed."""

    def __init__(self, *problems: ConfigProblem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value was found. Text, unlike YAML, still has to be parsed."""

    value: Any
    path: str
    is_text: bool


def read(config_class: type[Config], data: Mapping[str, Any]) -> Config:
    """Fill any dataclass from plain nested data, as YAML or JSON give it.

    Raises:
        ConfigError: an unknown key, a missing or mistyped value; paths as ``models.actor.seed``.
    """
    problems: list[ConfigProblem] = []
    return finish(_read_dataclass(config_class, data, "", problems), problems)


def finish(value: Config | None, problems: list[ConfigProblem]) -> Config:
    if problems:
        raise ConfigError(*problems)
    assert value is not None
    return value


def build(
    config_class: type[Config],
    sources: Mapping[str, Source],
    prefix: str,
    problems: list[ConfigProblem],
) -> Config | None:
    before = len(problems)
    known = {field.name: field for field in fields(config_class)}  # type: ignore[arg-type]  # as above
    hints = get_type_hints(config_class)
    for key in sources.keys() - known.keys():
        reason = f"is unknown; known are {', '.join(known)}"
        problems.append(ConfigProblem(sources[key].path, reason))
    for name, field in known.items():
        if name not in sources and is_required(field):
            problems.append(ConfigProblem(f"{prefix}{name}", "is missing"))
    values = {
        name: _convert(source.value, hints[name], source.path, source.is_text, problems)
        for name, source in sources.items()
        if name in known
    }
    if len(problems) > before:
        return None
    return _construct(config_class, values, prefix, problems)


def _construct(
    config_class: type[Config],
    values: Mapping[str, Any],
    prefix: str,
    problems: list[ConfigProblem],
) -> Config | None:
    """Call the class; what its own checks refuse becomes problems with the path in front."""
    try:
        return config_class(**values)
    except Exception as error:
        refused = getattr(error, "problems", None)
        if refused is not None:
            problems += [ConfigProblem(f"{prefix}{each.path}", each.reason) for each in refused]
        elif isinstance(error, ValueError):
            problems.append(ConfigProblem(prefix.rstrip("."), str(error)))
        else:
            raise
        return None


def is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, kind: Any, path: str, is_text: bool, problems: list[ConfigProblem]) -> Any:
    """`value` as `kind`; None after appending to `problems`."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _convert_optional(value, kind, path, is_text, problems)
    if is_text and (is_dataclass(kind) or origin in (dict, Mapping)):
        return _convert(yaml.safe_load(value), kind, path, False, problems)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, path, problems)
    if origin is tuple:
        return _convert_tuple(value, get_args(kind)[0], path, is_text, problems)
    if origin in (dict, Mapping, _ABSTRACT_MAPPING):
        return _convert_mapping(value, get_args(kind)[1], path, problems)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _convert_enum(value, kind, path, problems)
    if kind is Path and isinstance(value, str):
        return Path(value)
    return _convert_scalar(value, kind, path, is_text, problems)


_ABSTRACT_MAPPING = get_origin(Mapping[str, str])


def _read_dataclass(
    kind: type[Config], value: Any, path: str, problems: list[ConfigProblem]
) -> Config | None:
    if not isinstance(value, Mapping):
        problems.append(ConfigProblem(path, f"is {value!r} and needs key: value pairs"))
        return None
    prefix = f"{path}." if path else ""
    sources = {key: Source(item, f"{prefix}{key}", False) for key, item in value.items()}
    return build(kind, sources, prefix, problems)


def _convert_optional(
    value: Any, kind: Any, path: str, is_text: bool, problems: list[ConfigProblem]
) -> Any:
    options = [option for option in get_args(kind) if option is not NoneType]
    assert len(options) == 1, f"{path}: only X | None is read, not {kind}"
    if value is None or (is_text and value in ("", "none")):
        return None
    return _convert(value, options[0], path, is_text, problems)


def _convert_tuple(
    value: Any, item: Any, path: str, is_text: bool, problems: list[ConfigProblem]
) -> Any:
    if is_text:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        problems.append(ConfigProblem(path, f"is {value!r} and needs a list"))
        return None
    return tuple(
        _convert(each, item, f"{path}[{index}]", is_text, problems)
        for index, each in enumerate(value)
    )


def _convert_mapping(value: Any, item: Any, path: str, problems: list[ConfigProblem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(ConfigProblem(path, f"is {value!r} and needs key: value pairs"))
        return None
    return {
        str(key): _convert(each, item, f"{path}.{key}", False, problems)
        for key, each in value.items()
    }


def _convert_enum(value: Any, kind: type[Enum], path: str, problems: list[ConfigProblem]) -> Any:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(member.value) for member in kind)
        problems.append(ConfigProblem(path, f"is {value!r} and needs one of {choices}"))
        return None


def _convert_scalar(
    value: Any, kind: Any, path: str, is_text: bool, problems: list[ConfigProblem]
) -> Any:
    if kind is Any or kind is object:
        return value
    try:
        if is_text and kind is bool:
            return _TRUTH[value.strip().lower()]
        # PyYAML reads 1e-6 as a text: YAML 1.1 wants a dot in a float.
        if (is_text and kind in (int, float)) or (kind is float and isinstance(value, str)):
            return kind(value)
    except (KeyError, ValueError):
        value = str(value)
    else:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is kind:
            return value
    problems.append(ConfigProblem(path, f"is {value!r} and needs {_NEEDS.get(kind, kind)}"))
    return None
