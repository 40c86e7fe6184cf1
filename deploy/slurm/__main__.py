"""A cluster under Slurm: ``python -m deploy.slurm up --nodes 4``, ``… down``, ``… up --help``."""

import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from deploy.slurm.commands import (
    PENDING,
    gpus_of,
    is_active,
    reason_of,
    require_slurm,
    slurm,
    state_of,
)
from deploy.slurm.settings import SlurmSettings, settings_file
from realloc.config import from_command_line
from realloc.core.errors import Conflict, InvalidInput, JobFailed, NotFound, ReallocError

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = Path(__file__).with_name("realloc.sbatch")
_POLL_SECONDS = 1.0
_DOWN_SECONDS = 60.0
"""Longest wait for an orderly end, and again for a forced one."""


def main() -> int:
    verbs = {"up": up, "down": down}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        print("python -m deploy.slurm up|down [--field value …] [--help]", file=sys.stderr)
        return 2
    settings = from_command_line(SlurmSettings, sys.argv[2:])
    settings = replace(
        settings,
        run_dir=settings.run_dir.resolve(),
        reward_roots=tuple(str(Path(root).resolve()) for root in settings.reward_roots),
    )
    try:
        return verbs[sys.argv[1]](settings)
    except ReallocError as error:
        print(f"slurm: {error}", file=sys.stderr)
        return 1


def up(settings: SlurmSettings) -> int:
    """Check, submit, and follow the job until the cluster is ready."""
    require_slurm()
    _refuse_second(settings)
    if settings.gpus_per_node < 0:
        settings = replace(settings, gpus_per_node=gpus_of(settings.partition))
    _prepare(settings)
    command = [*_options(settings), str(_SCRIPT), str(settings.python), str(settings.run_dir)]
    _say(" ".join(slurm("sbatch", "--test-only", *command).split()))
    if settings.dry_run:
        print(shlex.join(["sbatch", *command]))
        return 0
    job_id = slurm("sbatch", "--parsable", *command).split(";")[0].strip()
    _job_file(settings).write_text(job_id + "\n")
    _say(f"submitted job {job_id}; its log: {_log(settings, job_id)}")
    try:
        _follow(settings, job_id)
    except KeyboardInterrupt:
        _say(f"job {job_id} goes on; `make undeploy TARGET=slurm` ends it")
        return 130
    return 0


def down(settings: SlurmSettings) -> int:
    """End the job of a folder in good order, by force where it does not; wait until it is gone."""
    require_slurm()
    job_id = _present_job(settings)
    if not job_id:
        raise NotFound(f"no Slurm job runs a cluster in {settings.run_dir}")
    if state_of(job_id) != PENDING:
        # To the batch script alone, which ends the rest; a plain scancel hits everything at once.
        slurm("scancel", "--batch", "--signal=TERM", job_id)
    if state_of(job_id) == PENDING or not _wait_gone(job_id):
        slurm("scancel", job_id)
        if not _wait_gone(job_id):
            raise Conflict(f"job {job_id} is still {state_of(job_id)}; see `squeue -j {job_id}`")
    _say(f"job {job_id} is gone")
    return 0


def _wait_gone(job_id: str) -> bool:
    deadline = time.monotonic() + _DOWN_SECONDS
    while is_active(state_of(job_id)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _refuse_second(settings: SlurmSettings) -> None:
    job_id = _present_job(settings)
    if job_id:
        raise Conflict(
            f"job {job_id} runs a cluster in {settings.run_dir} ({state_of(job_id)}); end it with "
            "`make undeploy TARGET=slurm`, or give another RUN_DIR"
        )


def _present_job(settings: SlurmSettings) -> str:
    """The job of this folder that has not ended; empty where there is none."""
    try:
        job_id = _job_file(settings).read_text().strip()
    except OSError:
        return ""
    return job_id if is_active(state_of(job_id)) else ""


def _prepare(settings: SlurmSettings) -> None:
    """Make the folder and write the settings into it."""
    if not os.access(settings.python, os.X_OK):
        raise InvalidInput.at("python", f"{settings.python} cannot be run; give VENV=/shared/venv")
    try:
        settings_file(settings.run_dir).parent.mkdir(parents=True, exist_ok=True)
        (settings.run_dir / "logs").mkdir(exist_ok=True)
        _endpoints(settings).unlink(missing_ok=True)
        settings.save(settings_file(settings.run_dir))
    except OSError as error:
        raise InvalidInput.at(
            "run_dir", f"{settings.run_dir} cannot be written: {error.strerror}"
        ) from error


def _options(settings: SlurmSettings) -> list[str]:
    named = {
        "nodes": str(settings.nodes),
        "time": settings.time,
        "signal": f"B:USR1@{settings.margin_seconds}",
        "output": str(_log(settings, "%j")),
        "chdir": str(_ROOT),
        "partition": settings.partition,
        "account": settings.account,
        "gpus-per-node": str(settings.gpus_per_node) if settings.gpus_per_node else "",
    }
    options = [f"--{name}={value}" for name, value in named.items() if value]
    if settings.exclusive:
        options += ["--exclusive", "--mem=0"]  # all cores, and all memory
    return options + shlex.split(settings.sbatch_options)


def _follow(settings: SlurmSettings, job_id: str) -> None:
    """Show the state and the log until the endpoints are there.

    Raises:
        JobFailed: the job ended before.
    """
    log, endpoints = _log(settings, job_id), _endpoints(settings)
    shown_state, shown_bytes = "", 0
    while not endpoints.exists():
        state = state_of(job_id)
        if log.exists():
            text = log.read_bytes()[shown_bytes:].decode(errors="replace")
            shown_bytes = log.stat().st_size
            for line in text.splitlines():
                _say(line)
        if not is_active(state):
            raise JobFailed(f"job {job_id} ended ({state}) before it was ready; see {log}")
        if state != shown_state:
            reason = reason_of(job_id)
            _say(f"{state} ({reason})" if reason else state)
            shown_state = state
        time.sleep(_POLL_SECONDS)
    _say(f"ready: {endpoints}")
    print(endpoints.read_text(), end="")


def _endpoints(settings: SlurmSettings) -> Path:
    return settings.run_dir / "endpoints.json"


def _job_file(settings: SlurmSettings) -> Path:
    return settings.run_dir / "slurm" / "job"


def _log(settings: SlurmSettings, job_id: str) -> Path:
    return settings.run_dir / "logs" / f"slurm-{job_id}.log"


def _say(text: str) -> None:
    print(f"slurm: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
