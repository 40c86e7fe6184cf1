"""Configuration: where values come from, and that everything wrong is said at once."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from realloc.config import ServiceConfig, describe, field_sentences, from_command_line, load
from realloc.core.strategy import ParallelStrategy
from realloc.plain_data import ConfigError, read


class Mode(Enum):
    """A choice."""

    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A nested noun."""

    seed: int
    """Starts the random numbers."""
    rate: float = 0.5
    """A rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig(ServiceConfig):
    """A service of the tests."""

    service = "example"

    workers: int
    """Threads that work."""
    fraction: float = 0.25
    """Share of
    the memory."""
    fast: bool = False
    """Skip what can be skipped."""
    mode: Mode = Mode.EXACT
    """How to compute."""
    ports: tuple[int, ...] = ()
    """More ports."""
    limit: int | None = None
    """Most of something; none for no limit."""
    inner: Inner | None = None
    """More of it."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each thing."""
    folder: Path = Path()
    """Where files lie."""
    strategy: ParallelStrategy = field(default_factory=ParallelStrategy)
    """A noun with checks of its own."""


def problems_of(*arguments: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)  # type: ignore[arg-type]
    return sorted(str(problem) for problem in caught.value.problems)


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return str(path)


def test_every_kind_of_field_is_read_from_yaml(tmp_path: Path) -> None:
    """A YAML file fills scalars, enums, lists, mappings, options and nested dataclasses."""
    path = yaml_file(
        tmp_path,
        "workers: 2\nfraction: 1\nfast: true\nmode: fast\nports: [1, 2]\nlimit: 3\n"
        "inner: {seed: 7, rate: 1e-6}\nweights: {a: 1, b: 2.5}\nfolder: /x/y\n"
        "strategy: {data: 2}\n",
    )
    assert load(ExampleConfig, path, {}) == ExampleConfig(
        workers=2,
        fraction=1.0,
        fast=True,
        mode=Mode.FAST,
        ports=(1, 2),
        limit=3,
        inner=Inner(seed=7, rate=1e-6),
        weights={"a": 1.0, "b": 2.5},
        folder=Path("/x/y"),
        strategy=ParallelStrategy(data=2),
    )


def test_every_kind_of_field_is_read_from_the_environment() -> None:
    """The environment fills the same kinds of fields, lists separated by commas."""
    environ = {
        "REALLOC_WORKERS": "2",
        "REALLOC_FRACTION": "0.5",
        "REALLOC_FAST": "yes",
        "REALLOC_MODE": "fast",
        "REALLOC_PORTS": "1, 2",
        "REALLOC_LIMIT": "none",
        "REALLOC_INNER": "{seed: 7}",
        "REALLOC_ETCD_ENDPOINTS": "127.0.0.1:1,127.0.0.1:2",
        "REALLOC_SOMETHING_ELSE": "is not ours",
    }
    config = load(ExampleConfig, None, environ)
    assert (config.workers, config.fraction, config.fast, config.mode) == (2, 0.5, True, Mode.FAST)
    assert (config.ports, config.limit, config.inner) == ((1, 2), None, Inner(seed=7))
    assert config.etcd_endpoints == ("127.0.0.1:1", "127.0.0.1:2")


def test_arguments_beat_environment_beats_file(tmp_path: Path) -> None:
    """Later sources win: file, environment, argument."""
    path = yaml_file(tmp_path, "workers: 1\nport: 1\nname: a\n")
    environ = {"REALLOC_PORT": "2", "REALLOC_NAME": "b", "REALLOC_CONFIG": path}
    config = from_command_line(ExampleConfig, ["--name", "c"], environ)
    assert (config.workers, config.port, config.name) == (1, 2, "c")


@pytest.mark.parametrize(
    "words",
    [
        ["--workers", "4", "--trace-dir", "t"],
        ["--workers=4", "--trace_dir=t"],
        ["--set", "workers=4", "--set", "trace_dir=t"],
    ],
)
def test_command_lines_come_in_three_spellings(words: list[str]) -> None:
    """--key value, --key=value and --set key=value mean the same."""
    config = from_command_line(ExampleConfig, words, {})
    assert (config.workers, config.trace_dir) == (4, "t")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "10.0.0.5"),
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("advertise_host", "node-3.cluster"),
        ("etcd_endpoints", ("127.0.0.1:2379", "10.0.0.5:2379")),
        ("etcd_endpoints", ("https://etcd:2379",)),
    ],
)
def test_nothing_leaves_the_machine_in_the_clear(field: str, value: Any) -> None:
    """An address that is not loopback needs tls_dir; the message says how to get one."""
    with pytest.raises(ConfigError, match=r"certs init") as caught:
        ServiceConfig(**{field: value})
    assert [problem.path for problem in caught.value.problems] == [field]
    ServiceConfig(**{field: value, "tls_dir": "certs"})


def test_loopback_needs_no_certificates() -> None:
    """Every spelling of this machine is fine, and no spelling of another is taken for it."""
    ServiceConfig(host="::1", advertise_host="localhost", etcd_endpoints=("http://127.0.0.9:1",))
    with pytest.raises(ConfigError):
        ServiceConfig(advertise_host="localhost.example.org")


def test_a_process_that_listens_everywhere_advertises_one_address() -> None:
    """0.0.0.0 is no address to be reached under."""
    everywhere = ServiceConfig(host="0.0.0.0", tls_dir="certs")
    assert everywhere.reachable_host not in ("0.0.0.0", "")
    named = ServiceConfig(host="0.0.0.0", advertise_host="10.0.0.5", tls_dir="certs")
    assert named.reachable_host == "10.0.0.5"


def test_all_problems_are_listed_with_their_places(tmp_path: Path) -> None:
    """One error names every unknown, missing and mistyped value and where it stands."""
    path = yaml_file(
        tmp_path,
        "prot: 1\nfast: 1\nhost: 3\nports: [1, x]\nmode: slow\ninner: {rate: fast}\n"
        "weights: {a: b}\nstrategy: {data: 0, tensor: 1.5}\nlimit: true\n",
    )
    found = problems_of(ExampleConfig, path, {"REALLOC_PORT": "many", "REALLOC_LOG_LEVEL": "info"})
    expected = [
        "REALLOC_PORT: is 'many' and needs a whole number",
        f"{path}: fast: is 1 and needs true or false",
        f"{path}: host: is 3 and needs a text",
        f"{path}: inner.rate: is 'fast' and needs a number",
        f"{path}: inner.seed: is missing",
        f"{path}: limit: is True and needs a whole number",
        f"{path}: mode: is 'slow' and needs one of fast, exact",
        f"{path}: ports[1]: is 'x' and needs a whole number",
        f"{path}: prot: is unknown; known are "
        + ", ".join(each.name for each in fields(ExampleConfig)),
        f"{path}: strategy.tensor: is 1.5 and needs a whole number",
        f"{path}: weights.a: is 'b' and needs a number",
        "workers: is missing",
    ]
    assert found == sorted(expected)


def test_checks_of_a_nested_class_keep_their_paths(tmp_path: Path) -> None:
    """What a dataclass's own checks refuse is reported at its field."""
    path = yaml_file(tmp_path, "workers: 1\nstrategy: {data: 0}\n")
    assert problems_of(ExampleConfig, path, {}) == [
        f"{path}: strategy.data: is 0 and must be at least 1"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", "is not YAML"), ("- a\n- b\n", "needs key: value lines"), ("5", "needs key: value")],
)
def test_unreadable_files_are_named(tmp_path: Path, text: str, reason: str) -> None:
    """A file that is no YAML mapping is one problem with its name."""
    path = yaml_file(tmp_path, text)
    found = [problem for problem in problems_of(ServiceConfig, path, {}) if path in problem]
    assert len(found) == 1
    assert found[0].startswith(f"{path}: {reason}")


def test_a_missing_file_is_named() -> None:
    """A file that does not exist is a problem, not a traceback."""
    assert problems_of(ServiceConfig, "/no/such.yaml", {}) == [
        "/no/such.yaml: cannot be read: No such file or directory"
    ]


def test_plain_data_is_read_into_any_dataclass() -> None:
    """`read` fills nested dataclasses from plain data, with plain paths."""
    assert read(Inner, {"seed": 3}) == Inner(seed=3)
    with pytest.raises(ConfigError) as caught:
        read(ExampleConfig, {"workers": 1, "inner": {"seed": "x", "sed": 1}})
    assert {problem.path for problem in caught.value.problems} == {"inner.seed", "inner.sed"}


@pytest.mark.parametrize("words", [["4"], ["--port"], ["--set", "port"], ["--nope", "1"]])
def test_wrong_command_lines_exit_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line says what is wrong on stderr and exits with status 2."""
    with pytest.raises(SystemExit) as caught:
        from_command_line(ServiceConfig, words, {})
    assert caught.value.code == 2
    assert words[-1 if words[0] == "--set" else 0] in capsys.readouterr().err


def test_help_shows_each_field_with_its_sentence() -> None:
    """--help lists every field, inherited ones too, with type, default and sentence."""
    text = describe(ExampleConfig)
    for each in fields(ExampleConfig):
        assert f"--{each.name.replace('_', '-')} (" in text
    assert "Share of the memory." in text
    assert "--workers (int), required" in text
    assert "--mode (fast|exact) [exact]" in text
    assert "--drain-seconds (float) [10.0]" in text


def test_every_field_of_a_service_has_a_sentence() -> None:
    """No field of the shared configuration goes without explanation."""
    assert {each.name for each in fields(ServiceConfig)} <= field_sentences(ServiceConfig).keys()


def test_help_loads_nothing_heavy() -> None:
    """Reading a configuration imports no grpc, no OpenTelemetry, and of ours what lies below."""
    code = (
        "import sys, realloc.config as c; print(c.describe(c.ServiceConfig));"
        "own = {f'realloc.{name}' for name in ('config', 'plain_data', 'addresses')};"
        "bad = [m for m in sys.modules if m.startswith(('grpc', 'opentelemetry', 'numpy',"
        " 'realloc.')) and m not in own]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
