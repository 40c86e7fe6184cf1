"""What may be imported where; the layers themselves are import-linter's (`make check`)."""

import ast
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata
from pathlib import Path

import grpc
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from realloc.api.scheduler.v1 import scheduler_pb2 as pb
from realloc.api.scheduler.v1 import scheduler_pb2_grpc
from realloc.client.experiment_file import load_experiment
from realloc.core.job import Job, JobState
from realloc.wire.convert import to_proto

ROOT = Path(__file__).resolve().parent.parent.parent
PURE = ("config", "core", "cost", "dataflow", "reallocation", "search")
IMPURE = frozenset({"torch", "grpc", "aetcd", "vllm", "megatron", "transformers"})
SECONDS = 120.0


def modules_of(name: str) -> list[str]:
    """A package and every module below it; a plain module is itself alone."""
    package = import_module(f"realloc.{name}")
    paths = getattr(package, "__path__", ())
    below = pkgutil.walk_packages(paths, f"realloc.{name}.")
    return [f"realloc.{name}", *(each.name for each in below)]


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'common'}{os.pathsep}{ROOT}"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def imported_by(modules: Sequence[str]) -> set[str]:
    """Top-level packages in `sys.modules` of a fresh interpreter once it imported these."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    return set(json.loads(run_python(code, *modules)))


@pytest.mark.parametrize("package", PURE)
def test_thinking_is_pure(package):
    """Every module of a pure package imports without torch, gRPC, etcd or an engine."""
    modules = modules_of(package)
    assert package == "config" or len(modules) > 2
    assert not imported_by(modules) & IMPURE


def test_packages_reexport_nothing():
    """An `__init__.py` is a docstring: importing a module imports nothing beside it."""
    folders = [ROOT / "common" / "realloc", ROOT / "services", ROOT / "deploy"]
    for path in (path for folder in folders for path in folder.rglob("__init__.py")):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, f"{path} holds more than a docstring"
        assert isinstance(body[0], ast.Expr), path
        assert isinstance(body[0].value, ast.Constant), path


def test_help_answers_at_once():
    """`realloc --help` imports no numpy, no gRPC and nothing heavier."""
    code = (
        "import contextlib, io, json, sys\n"
        "from realloc.client.cli import main\n"
        "text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(json.dumps({'text': text.getvalue(), 'modules': sorted(sys.modules)}))"
    )
    answer = json.loads(run_python(code))
    assert all(verb in answer["text"] for verb in ("submit", "jobs", "cancel", "trace"))
    loaded = {name.partition(".")[0] for name in answer["modules"]}
    assert not loaded & (IMPURE | {"numpy", "yaml", "rich", "google"})


def light_distributions() -> set[str]:
    """What `pip install .` without extras brings, requirements of requirements included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    left = [Requirement(text) for text in project["dependencies"]]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in found or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        left += [Requirement(text) for text in metadata.requires(name) or ()]
    return found


class OneJob(scheduler_pb2_grpc.SchedulerServiceServicer):
    """A scheduler that knows one job."""

    def ListJobs(self, request, context):
        experiment = load_experiment(str(ROOT / "examples" / "ppo.yaml"))
        job = Job(job_id="job-1", experiment=experiment, state=JobState.RUNNING)
        return pb.ListJobsResponse(jobs=[to_proto(job, pb.Job)])


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Address of a scheduler within this process."""
    server = grpc.server(ThreadPoolExecutor(2))
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(OneJob(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(SECONDS)


def test_the_light_client_works_alone(scheduler):
    """The client's modules need no package beyond the dependencies without extras: with all
    others out of reach they import, read an experiment and ask a scheduler."""
    allowed = light_distributions()
    owners = metadata.packages_distributions()
    light = {name for name in owners if allowed & {*map(canonicalize_name, owners[name])}}
    assert {"grpc", "numpy", "yaml", "rich"} <= light
    assert not light & {"torch", "structlog", "opentelemetry", "aetcd", "numba"}
    code = (
        "import sys\n"
        "light = {*sys.argv[2].split(), *sys.stdlib_module_names, 'realloc', '__main__'}\n"
        "class OnlyLight:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in light:\n"
        "            raise ModuleNotFoundError(f'{name} is not installed')\n"
        "sys.meta_path.insert(0, OnlyLight)\n"
        "from realloc.client import cli, commands, report\n"
        "from realloc.client.client import Client\n"
        "from realloc.client.experiment_file import load_experiment\n"
        "assert load_experiment('examples/ppo.yaml').algorithm == 'ppo'\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print([(job.job_id, job.state.value) for job in client.jobs()])"
    )
    assert run_python(code, scheduler, " ".join(light)) == "[('job-1', 'running')]\n"
