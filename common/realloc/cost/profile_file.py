"""Profiles as JSON files: one line per sample, so that a person can read and compare them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from realloc.core.errors import InvalidInput
from realloc.core.model import Head, ModelArchitecture
from realloc.cost.profile import LinkKind, LinkSample, Profile, Sample
from realloc.cost.ratios import Work

FORMAT = 1
"""Of the files; a reader refuses others."""


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile; an existing file is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(profile_to_json(profile))
    partial.replace(path)


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        InvalidInput: there is no such file, or it is not a profile of this format.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInput.at("profile", f"{path} cannot be read: {error.strerror}") from error
    return profile_from_json(text, str(path))


def profile_to_json(profile: Profile) -> str:
    """The text of a profile's file."""
    head = {
        "format": FORMAT,
        "device": profile.device,
        "preset": profile.preset,
        "date": profile.date,
        "devices_at_once": profile.devices_at_once,
        "versions": dict(profile.versions),
        "models": {name: _plain(model) for name, model in profile.models.items()},
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    samples = ",\n".join(f"    {json.dumps(_plain(each))}" for each in profile.samples)
    links = ",\n".join(f"    {json.dumps(_plain(each))}" for each in profile.links)
    lines += ['  "samples": [', samples, '  ],\n  "links": [', links, "  ]"]
    return "\n".join(["{", *lines, "}"]) + "\n"


def profile_from_json(text: str, where: str = "profile") -> Profile:
    """Read the text of a profile's file.

    Args:
        where: names it in errors.

    Raises:
        InvalidInput: it is not JSON, of another format, or a value is missing or wrong.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise InvalidInput.at(where, f"is not JSON: {error}") from error
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != FORMAT:
        raise InvalidInput.at(
            where, f"has format {found!r}; this version reads {FORMAT}: profile the device again"
        )
    try:
        return Profile(
            device=str(plain["device"]),
            preset=str(plain["preset"]),
            date=str(plain["date"]),
            devices_at_once=int(plain["devices_at_once"]),
            versions={str(name): str(value) for name, value in plain["versions"].items()},
            models={name: _model(value) for name, value in plain["models"].items()},
            samples=tuple(_sample(each) for each in plain["samples"]),
            links=tuple(_link(each) for each in plain["links"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput.at(where, f"is no profile: {error!r}") from error


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it: enums by value; seconds to five digits."""
    plain = {}
    for name, item in asdict(value).items():
        plain[name] = item.value if isinstance(item, Enum) else item
        if name == "seconds":
            plain[name] = float(f"{item:.5g}")
    return plain


def _sample(plain: Mapping[str, Any]) -> Sample:
    return Sample(**_timed(plain) | {"work": Work(plain["work"])})


def _link(plain: Mapping[str, Any]) -> LinkSample:
    return LinkSample(**_timed(plain) | {"kind": LinkKind(plain["kind"])})


def _timed(plain: Mapping[str, Any]) -> dict[str, Any]:
    if not math.isfinite(plain["seconds"]) or plain["seconds"] < 0:
        raise ValueError(f"seconds are {plain['seconds']}")
    return dict(plain)


def _model(plain: Mapping[str, Any]) -> ModelArchitecture:
    scaling = tuple((str(key), float(value)) for key, value in plain["rope_scaling"])
    return ModelArchitecture(**{**plain, "rope_scaling": scaling, "head": Head(plain["head"])})
