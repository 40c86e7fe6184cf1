"""The ``realloc`` command: verbs on jobs."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from realloc.client.doctor.arguments import add_arguments as add_doctor_arguments
from realloc.client.layout_arguments import add_arguments as add_layout_arguments
from realloc.client.plan_arguments import add_arguments as add_plan_arguments
from realloc.client.security_arguments import add_certs, add_tokens
from realloc.core.errors import InvalidInput, ReallocError

_RESUMING = ("save_job", "pause_job", "resume_job", "drain")
"""Commands of `realloc.client.resume_commands`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 on an error, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        status = _command(arguments.command)(arguments)
    except ReallocError as error:
        _print_error(error, arguments)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    return status


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    # Imported only once the arguments are right; a plan needs neither gRPC nor rich.
    if name == "plan":
        try:
            from realloc.client.plan_command import plan
        except ModuleNotFoundError as error:
            if error.name != "numba":
                raise
            raise InvalidInput.at("plan", "needs numba: pip install 'realloc[plan]'") from error
        return plan
    if name == "doctor":
        try:
            from realloc.client.doctor.command import doctor
        except ModuleNotFoundError as error:
            if error.name != "aetcd":
                raise
            needs = "needs aetcd: pip install 'realloc[services]'"
            raise InvalidInput.at("doctor", needs) from error
        return doctor
    if name in ("show_layout", "diff_layouts"):
        from realloc.client import layout_command

        return layout_command.show if name == "show_layout" else layout_command.diff
    group, _, verb = name.rpartition(".")
    if group:
        return _grouped(group, verb)
    from realloc.client import commands, resume_commands

    module = resume_commands if name in _RESUMING else commands
    command: Callable[[argparse.Namespace], int] = getattr(module, name)
    return command


def _grouped(group: str, verb: str) -> Callable[[argparse.Namespace], int]:
    """The verb of ``realloc certs`` or ``realloc tokens``."""
    try:
        module = import_module(f"realloc.client.{group}_command")
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        raise InvalidInput.at(group, "needs cryptography: pip install 'realloc[certs]'") from error
    command: Callable[[argparse.Namespace], int] = getattr(module, verb)
    return command


def _print_error(error: ReallocError, arguments: argparse.Namespace) -> None:
    problems = [str(problem) for problem in getattr(error, "problems", ())] or [str(error)]
    if getattr(arguments, "json", False):
        print(json.dumps({"error": type(error).__name__, "problems": problems}))
    for problem in problems:
        print(f"realloc: {problem}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="realloc", description="RLHF training with parameter reallocation."
    )
    parser.add_argument(
        "--address", default="", help="scheduler, host:port (default: REALLOC_ADDRESS, local)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="command")
    _add_jobs(verbs)
    _add_changes(verbs)
    _add_offline(verbs)
    add_doctor_arguments(_verb(verbs, "doctor", "doctor", "check a deployment, say what to do"))
    certs = verbs.add_parser("certs", help="certificates of a first cluster")
    add_certs(certs.add_subparsers(required=True, metavar="verb"), _verb)
    tokens = verbs.add_parser("tokens", help="who may use the cluster")
    add_tokens(tokens.add_subparsers(required=True, metavar="verb"), _verb)
    return parser


def _add_jobs(verbs: Any) -> None:
    """Jobs begin, and are looked at."""
    submit = _verb(verbs, "submit", "submit", "queue an experiment")
    submit.add_argument("experiment", help="YAML file")
    submit.add_argument("--watch", action="store_true", help="show progress until the job ends")
    submit.add_argument("--validate-only", action="store_true", help="check, queue nothing")
    submit.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints of its folder, if any"
    )
    submit.add_argument("--request-id", default="", help="makes a repeated submission safe")

    _verb(verbs, "jobs", "list_jobs", "list jobs")

    job = verbs.add_parser("job", help="one job").add_subparsers(required=True, metavar="verb")
    show = _verb(job, "show", "show_job", "a job, its plan and its latest iterations")
    show.add_argument("job_id")
    watch = _verb(job, "watch", "watch_job", "progress until the job ends")
    watch.add_argument("job_id")

    trace = _verb(verbs, "trace", "write_trace", "write a job's timeline for Perfetto")
    trace.add_argument("job_id")
    trace.add_argument("-o", "--output", type=Path, default=Path("trace.json"))


def _add_changes(verbs: Any) -> None:
    """Jobs are saved, stop and go on."""
    cancel = _verb(verbs, "cancel", "cancel_job", "cancel a job")
    cancel.add_argument("job_id")

    checkpoint = _verb(verbs, "checkpoint", "save_job", "save a running job now")
    checkpoint.add_argument("job_id")
    _add_timeout(checkpoint)

    pause = _verb(verbs, "pause", "pause_job", "save a job and stop it, to be resumed later")
    pause.add_argument("job_id")
    _add_timeout(pause)

    resume = _verb(verbs, "resume", "resume_job", "let a paused, failed or cancelled job go on")
    resume.add_argument("job", help="its id, or its checkpoint folder")
    resume.add_argument("--watch", action="store_true", help="show progress until the job ends")

    drain = _verb(verbs, "drain", "drain", "pause every job that can be resumed")
    _add_timeout(drain)


def _add_offline(verbs: Any) -> None:
    """What needs no cluster."""
    layout = verbs.add_parser("layout", help="layouts of models, without any service")
    layout_verbs = layout.add_subparsers(required=True, metavar="verb")
    add_layout_arguments(
        _verb(layout_verbs, "show", "show_layout", "what each rank of a layout stores"),
        _verb(layout_verbs, "diff", "diff_layouts", "what moves from one layout to another"),
    )
    add_plan_arguments(_verb(verbs, "plan", "plan", "plan an experiment, without any service"))


def _verb(verbs: Any, name: str, command: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)
    return parser


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds to wait until it is done (600)"
    )


if __name__ == "__main__":
    sys.exit(main())
