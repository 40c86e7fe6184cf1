"""Configuration: a frozen dataclass, filled from a YAML file, the environment and arguments.

    class SchedulerConfig(ServiceConfig): ...         # each field with a sentence beneath it

    config = load(SchedulerConfig)                    # REALLOC_CONFIG names the YAML file
    config = load(SchedulerConfig, "scheduler.yaml")
    config = from_command_line(SchedulerConfig)       # --config FILE --port 0 --set port=0 --help

Later wins: default, YAML file, ``REALLOC_<FIELD>``, argument. Everything wrong is reported in
one `ConfigError`, each problem with where it stands.
"""

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml

from realloc.addresses import host_of, is_loopback, is_wildcard, routable_address
from realloc.plain_data import (
    Config,
    ConfigError,
    ConfigProblem,
    Source,
    build,
    finish,
    is_required,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What every service is told."""

    service: ClassVar[str] = "service"
    """Kind of the service, fixed by its class: ``scheduler``, ``trainer``."""

    name: str = ""
    """Name of this process, unique in the cluster; empty takes the service's name."""
    host: str = "127.0.0.1"
    """Address to listen on; one that is not loopback needs `tls_dir`."""
    port: int = 0
    """Port to listen on; 0 takes any free one."""
    advertise_host: str = ""
    """Host under which others reach this process; empty takes the listening address, and where
    that is 0.0.0.0 or :: the machine's own address towards etcd."""
    etcd_endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    """Addresses of the etcd members, host:port."""
    tls_dir: str = ""
    """Folder with ca.crt, tls.crt and tls.key of this process, as `realloc certs init` makes it;
    empty talks in the clear, which only loopback may."""
    health_port: int = 0
    """Port that answers health checks alone and in the clear, for probes that speak no TLS; 0
    opens none."""
    log_level: str = "info"
    """Least level that is logged: debug, info, warning or error."""
    trace_dir: str = ""
    """Folder for OTLP-JSON files of spans and metrics; empty writes none."""
    otlp_endpoint: str = ""
    """gRPC endpoint of an OpenTelemetry collector, such as http://host:4317; empty sends none."""
    drain_seconds: float = 10.0
    """Seconds that running calls get to end once the process was asked to stop."""

    def __post_init__(self) -> None:
        problems = () if self.tls_dir else tuple(self._exposed())
        if problems:
            raise ConfigError(*problems)

    @property
    def instance(self) -> str:
        """The name of this process."""
        return self.name or self.service

    @property
    def reachable_host(self) -> str:
        """Host under which others reach this process."""
        if self.advertise_host or not is_wildcard(self.host):
            return self.advertise_host or self.host
        return routable_address(map(host_of, self.etcd_endpoints))

    def _exposed(self) -> "Iterator[ConfigProblem]":
        """Addresses that talking in the clear would expose."""
        hosts = [("host", self.host), ("advertise_host", self.advertise_host)]
        hosts += [("etcd_endpoints", host_of(each)) for each in self.etcd_endpoints]
        for path, host in hosts:
            if host and not is_loopback(host):
                yield ConfigProblem(
                    path,
                    f"{host} is not loopback, and nothing may leave a machine in the clear: set "
                    "tls_dir; `realloc certs init DIR` makes certificates for a first cluster",
                )


def load(
    config_class: type[Config],
    path: str | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[str, str] | None = None,
) -> Config:
    """Fill a configuration; `arguments` are values from the command line, by field name.

    Raises:
        ConfigError: an unknown key, a missing or mistyped value, an unreadable file.
    """
    problems: list[ConfigProblem] = []
    path = path or environ.get("REALLOC_CONFIG")
    sources = {
        key: Source(value, f"{path}: {key}", False)
        for key, value in _yaml_mapping(path, problems).items()
    }
    for field in fields(config_class):  # type: ignore[arg-type]  # a dataclass
        variable = f"REALLOC_{field.name.upper()}"
        if variable in environ:
            sources[field.name] = Source(environ[variable], variable, True)
    for key, text in (arguments or {}).items():
        sources[key] = Source(text, f"--{key.replace('_', '-')}", True)
    return finish(build(config_class, sources, "", problems), problems)


def from_command_line(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """As `load`, with ``--config FILE``, ``--field value`` and ``--set field=value``.

    ``--help`` prints every field and exits; a wrong configuration exits with status 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        print(describe(config_class))
        raise SystemExit(0)
    try:
        arguments = _parse_arguments(words)
        return load(config_class, arguments.pop("config", None), environ, arguments)
    except ConfigError as error:
        print(f"{error}\n--help lists all fields", file=sys.stderr)
        raise SystemExit(2) from None


def describe(config_class: type[Any]) -> str:
    """Every field with its type, default and sentence, as ``--help`` prints it."""
    hints = get_type_hints(config_class)
    sentences = field_sentences(config_class)
    lines = [inspect.getdoc(config_class) or config_class.__name__, ""]
    lines += ["  --config FILE", "      YAML file with any of the fields below.", ""]
    for field in fields(config_class):
        default = _default_text(field)
        option = field.name.replace("_", "-")
        lines.append(f"  --{option} ({_type_text(hints[field.name])}){default}")
        lines.append(textwrap.indent(textwrap.fill(sentences.get(field.name, ""), 90), " " * 6))
    lines += ["", "Each field is also read from the environment: REALLOC_<FIELD>."]
    return "\n".join(lines)


def field_sentences(config_class: type[Any]) -> dict[str, str]:
    """The docstring beneath each field, those of base classes included."""
    found: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        if not is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for above, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[above.target.id] = " ".join(str(below.value.value).split())
    return found


def _yaml_mapping(path: str | None, problems: list[ConfigProblem]) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.append(ConfigProblem(path, f"cannot be read: {reason}"))
        return {}
    except yaml.YAMLError as error:
        problems.append(ConfigProblem(path, f"is not YAML: {' '.join(str(error).split())}"))
        return {}
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        problems.append(ConfigProblem(path, "needs key: value lines at its top"))
        return {}
    return data


def _parse_arguments(words: list[str]) -> dict[str, str]:
    """``--key value``, ``--key=value`` and ``--set key=value`` as a mapping."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(ConfigProblem(word, "is not an argument of the form --field value"))
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(ConfigProblem(word, "needs a value after it"))
            value = rest.pop(0)
        if key == "set":
            key, equals, value = value.partition("=")
            if not equals:
                raise ConfigError(ConfigProblem(f"--set {key}", "needs the form key=value"))
        found[key.replace("-", "_")] = value
    return found


def _type_text(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"comma-separated {_type_text(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _default_text(field: Field[Any]) -> str:
    if is_required(field):
        return ", required"
    default = field.default_factory() if callable(field.default_factory) else field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return f" [{default.value if isinstance(default, Enum) else default}]"
