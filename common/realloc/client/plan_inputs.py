"""What `realloc plan` plans: a cluster that one may not have, models without their weights."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.experiment import Experiment, ModelSettings
from realloc.core.mesh import Cluster
from realloc.core.model import ModelArchitecture
from realloc.cost.hardware import HARDWARE, Hardware, hardware_of
from realloc.cost.measured_links import LinkTable, with_measured_links
from realloc.cost.profile_file import read_profile
from realloc.cost.profile_fit import profiled_hardware
from realloc.dataflow.graph import DataflowGraph, GraphModel

_CLUSTER = re.compile(r"(\d+)x([A-Za-z0-9-]+)(?::(\d+))?(?:@([\d.]+))?")
_CHARACTERS_PER_TOKEN = 4.0
"""Of English text under the usual vocabularies, roughly."""
_DEFAULT_PROMPT_TOKENS = 512.0
_SAMPLED_ROWS = 2000
_MOST_NODES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCluster:
    """A cluster and what its devices can do."""

    cluster: Cluster
    hardware: Hardware
    """Of the first node."""
    node_hardware: tuple[Hardware, ...] = ()
    """Of each node, where they differ."""


def parse_cluster(text: str) -> PlannedCluster:
    """Read ``16xH100:8@3200``: nodes, kind, devices per node, network in Gb/s per node.

    Devices per node and network may be left out: 8, and what the kind usually has. Nodes of
    several kinds are joined by ``+`` and counted in that order.

    Raises:
        InvalidInput: not of this form, an unknown kind, or sizes that no cluster has.
    """
    parts = [_parse_nodes(part.strip()) for part in text.split("+")]
    sizes = {hardware.devices_per_node for _, hardware in parts}
    if len(sizes) > 1:
        raise InvalidInput.at(
            "cluster", f"{text!r} has nodes of {sizes} devices; all need the same number"
        )
    nodes = tuple(hardware for number, hardware in parts for _ in range(number))
    return PlannedCluster(
        cluster=Cluster(
            num_nodes=len(nodes),
            devices_per_node=nodes[0].devices_per_node,
            device_kind="+".join(dict.fromkeys(hardware.name for hardware in nodes)),
            device_memory_bytes=max(hardware.memory_bytes for hardware in nodes),
        ),
        hardware=nodes[0],
        node_hardware=nodes if len({hardware.name for hardware in nodes}) > 1 else (),
    )


def _parse_nodes(text: str) -> tuple[int, Hardware]:
    """Nodes of one kind: how many, and what their devices can do."""
    match = _CLUSTER.fullmatch(text)
    if match is None:
        raise InvalidInput.at("cluster", f"{text!r} is not of the form 16xH100:8 or 4xA100:8@800")
    nodes, kind, size, network = match.groups()
    names = {name.lower(): name for name in HARDWARE}
    if kind.lower() not in names:
        raise InvalidInput.at("cluster", f"{kind!r} is unknown hardware; known: {_known()}")
    hardware = hardware_of(names[kind.lower()])
    per_node = int(size or hardware.devices_per_node)
    if not 1 <= int(nodes) <= _MOST_NODES or not 1 <= per_node <= 64 or per_node & (per_node - 1):
        raise InvalidInput.at(
            "cluster", f"{text!r} needs 1 to {_MOST_NODES} nodes of 1, 2, 4, … 64 devices"
        )
    hardware = hardware.with_node_size(per_node)
    return int(nodes), hardware.with_network(float(network)) if network else hardware


def with_links(planned: PlannedCluster, path: Path) -> PlannedCluster:
    """The same cluster with the links that ``realloc doctor --links`` measured.

    Raises:
        InvalidInput: the file cannot be read, or holds something else.
    """
    try:
        table = LinkTable.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise InvalidInput.at("--links", f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput.at("--links", f"{path} is not JSON: {error}") from error
    return replace(
        planned,
        hardware=with_measured_links(planned.hardware, table),
        node_hardware=tuple(with_measured_links(kind, table) for kind in planned.node_hardware),
    )


def with_profile(planned: PlannedCluster, path: Path) -> PlannedCluster:
    """The same cluster of devices that were profiled (``tools/profile_hardware.py``).

    Raises:
        InvalidInput: the file cannot be read, is no profile or one of another kind; or nodes
            differ, of which one profile says nothing.
    """
    if planned.node_hardware:
        raise InvalidInput.at("--profile", "is of one kind of device and the nodes differ")
    measured = profiled_hardware(planned.cluster.device_kind, read_profile(path))
    cluster = replace(planned.cluster, device_memory_bytes=measured.memory_bytes)
    hardware = replace(
        measured,
        network=planned.hardware.network,
        devices_per_node=planned.cluster.devices_per_node,
    )
    return replace(planned, cluster=cluster, hardware=hardware)


def architectures_of(experiment: Experiment, graph: DataflowGraph) -> dict[str, ModelArchitecture]:
    """Each model's architecture, from the ``config.json`` of its checkpoint.

    Raises:
        InvalidInput: configurations that cannot be read; all at once.
    """
    found: dict[str, ModelArchitecture] = {}
    problems: list[Problem] = []
    for model in graph.models:
        try:
            found[model.model_id] = _architecture(experiment, model)
        except InvalidInput as error:
            problems += [each for each in error.problems if each not in problems]
    raise_problems(problems)
    return found


def _architecture(experiment: Experiment, model: GraphModel) -> ModelArchitecture:
    field = "reward_model" if model.model_id == "reward" else model.model_id
    settings: ModelSettings | None = getattr(experiment, field)
    if settings is None:
        field, settings = "actor", experiment.actor
    path = Path(settings.checkpoint) / "config.json"
    where = f"{field}.checkpoint"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInput.at(where, f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput.at(where, f"{path} is not JSON: {error}") from error
    try:
        return ModelArchitecture.from_hf_config(config, model.head).with_head(model.head)
    except InvalidInput as error:
        raise InvalidInput(
            *(Problem(where, f"{path}: {problem}") for problem in error.problems)
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLength:
    """Mean tokens of a prompt, and where the number comes from."""

    tokens: float
    source: str


def prompt_length(experiment: Experiment, given: float | None) -> PromptLength:
    """The given mean; else estimated from the data file; else a usual one.

    Raises:
        InvalidInput: the given mean is below 1.
    """
    if given is not None:
        if given < 1:
            raise InvalidInput.at("--prompt-tokens", f"is {given:g} and must be at least 1")
        return PromptLength(tokens=given, source="given")
    try:
        with Path(experiment.data.path).open() as file:
            lengths = [
                len(_text(line)) for line, _ in zip(file, range(_SAMPLED_ROWS), strict=False)
            ]
    except (OSError, ValueError, AttributeError):
        lengths = []
    if not lengths:
        return PromptLength(
            tokens=_DEFAULT_PROMPT_TOKENS, source="assumed, for want of data; see --prompt-tokens"
        )
    tokens = max(1.0, sum(lengths) / len(lengths) / _CHARACTERS_PER_TOKEN)
    return PromptLength(tokens=tokens, source="estimated from the data, 4 characters a token")


def _text(line: str) -> str:
    row = json.loads(line)
    return str(row.get("prompt", "")) + str(row.get("completion", ""))


def _known() -> str:
    return ", ".join(sorted(HARDWARE))
