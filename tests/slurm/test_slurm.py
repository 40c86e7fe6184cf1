"""The whole system as one Slurm job, on a Slurm of four virtual nodes."""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdMember
from deploy.local.ports import ReservedPorts
from tests.support.slurm_machine import SlurmMachine

pytestmark = pytest.mark.slurm

SECONDS = 240.0
"""Longest wait for a cluster or a job: four nodes of two cores are slow."""

_ITERATIONS = 100
"""So many that a job is still running when the time limit is changed."""

PPO: dict[str, Any] = {
    "name": "slurm-ppo",
    "algorithm": "ppo",
    "iterations": 2,
    "seed": 7,
    "actor": {
        "checkpoint": "model",
        "random_weights": True,
        "optimizer": {"learning_rate": 1e-3},
    },
    "data": {"path": "train.jsonl", "batch_size": 16},
    "reward": {"function": "rewards.py:digits"},
    "evaluation": {"path": "heldout.jsonl"},
    "generation": {"max_new_tokens": 4},
    "ppo": {"mini_batches": 2},
    "pins": {"actor_train": "d2t2p1@0-3", "actor_gen": "d2t1p1@2-3"},
    "call_timeout_seconds": 300,
}


@pytest.fixture(autouse=True)
def nothing_stays(machine: SlurmMachine) -> Iterator[None]:
    """A test that failed takes its cluster along."""
    yield
    machine.cancel_jobs()


def up(machine: SlurmMachine, *options: str) -> str:
    """Bring a cluster up; what the command printed."""
    process = machine.popen(
        *(machine.python, "-m", "deploy.slurm", "up", "--nodes", "4", "--reward-roots", "."),
        *("--always-encrypts", "yes", *options),
    )
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return output


def down(machine: SlurmMachine) -> None:
    """Take the cluster down in good order."""
    machine.run(machine.python, "-m", "deploy.slurm", "down")


def realloc(machine: SlurmMachine, *arguments: str) -> list[Any]:
    """JSON lines of the ``realloc`` command, which finds the cluster by its endpoints file."""
    output = machine.run(
        *(machine.python, "-m", "realloc.client.cli", *arguments, "--json"),
        timeout_seconds=SECONDS,
    )
    return [json.loads(line) for line in output.splitlines()]


def submit(machine: SlurmMachine, **changes: Any) -> str:
    """Queue the PPO experiment; its job id."""
    path = machine.folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**PPO, **changes}))
    (line,) = realloc(machine, "submit", str(path))
    return str(line["job_id"])


def endpoints(machine: SlurmMachine) -> dict[str, str]:
    """The endpoints file."""
    found: dict[str, str] = json.loads((machine.folder / "run" / "endpoints.json").read_text())
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what Slurm does in its own time."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_nothing_left(machine: SlurmMachine, job_id: str) -> None:
    """No process of a Slurm job, no entry in the queue, no endpoints."""
    _, left = psutil.wait_procs(machine.processes_of(job_id), timeout=30)
    assert not left
    wait_until(lambda: machine.run("squeue", "-h") == "")
    assert not (machine.folder / "run" / "endpoints.json").exists()


def test_a_ppo_job_runs_to_its_end_on_four_nodes(machine: SlurmMachine) -> None:
    """Trainers and replicas of four nodes do one job over TLS, the doctor is content, and the
    end leaves nothing."""
    up(machine)
    slurm_job = endpoints(machine)["slurm_job"]
    machine.run("mkdir", "saved")
    job_id = submit(machine)
    updates = realloc(machine, "job", "watch", job_id)
    assert updates[-1]["job"]["state"] == "succeeded", updates[-1]
    assert [each["report"]["weight_version"] for each in updates if each["report"]] == [2, 4]
    (report,) = realloc(machine, "doctor", "--folder", "saved")
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    assert statuses["certificates"] == statuses["folder"] == "ok", report
    assert statuses["links"] in ("ok", "warning"), report  # a busy machine has slow pairs
    down(machine)
    assert machine.job_field(slurm_job, "JobState") == "COMPLETED"
    assert_nothing_left(machine, slurm_job)


def test_scancel_leaves_no_process_and_no_half_state(machine: SlurmMachine) -> None:
    """A cluster that was cancelled in the middle of a job is gone, and the next one works."""
    up(machine)
    slurm_job = endpoints(machine)["slurm_job"]
    job_id = submit(machine, iterations=1000)
    first = machine.popen(
        *(machine.python, "-m", "realloc.client.cli", "job", "watch", job_id, "--json")
    )
    assert first.stdout is not None
    assert any('"report": {' in line for line in first.stdout), "no iteration ended"
    machine.run("scancel", slurm_job)
    first.communicate(timeout=SECONDS)
    wait_until(lambda: machine.job_field(slurm_job, "JobState") == "CANCELLED")
    assert_nothing_left(machine, slurm_job)

    up(machine)
    (shown,) = realloc(machine, "job", "show", job_id)
    assert shown["job"]["state"] != "running"
    down(machine)


def test_a_job_outlives_the_time_limit(machine: SlurmMachine) -> None:
    """Near its limit the cluster saves the job, is queued again, and goes on where it was."""
    up(machine, "--margin-seconds", "60")
    slurm_job = endpoints(machine)["slurm_job"]
    job_id = submit(
        machine, iterations=_ITERATIONS, checkpoint={"folder": str(machine.folder / "saved")}
    )
    wait_until(lambda: len(reports(machine, job_id)) > 0)
    # Slurm warns this long before the end, so it warns now, or within its period of 30 s.
    set_minutes(machine, slurm_job, elapsed_minutes(machine, slurm_job) + 2)
    wait_until(lambda: machine.job_field(slurm_job, "JobState") == "PENDING")
    (paused,) = json.loads((machine.folder / "run" / "slurm" / "paused-jobs.json").read_text())
    assert paused == job_id
    set_minutes(machine, slurm_job, 60)

    wait_until((machine.folder / "run" / "endpoints.json").exists)
    assert machine.job_field(slurm_job, "Restarts") == "1"
    updates = realloc(machine, "job", "watch", job_id)
    assert updates[-1]["job"]["state"] == "succeeded", updates[-1]["job"]
    numbers = [report["iteration"] for report in reports(machine, job_id)]
    assert numbers == list(range(1, _ITERATIONS + 1))
    down(machine)
    assert_nothing_left(machine, slurm_job)


@contextmanager
def own_etcd(machine: SlurmMachine, certificates: Path) -> Iterator[str]:
    """An etcd that the user started beside Slurm; its endpoint."""
    ports = ReservedPorts(2)
    member = EtcdMember.on(
        ports, "given", machine.folder / "given-etcd", tls_dir=certificates / "etcd"
    )
    command = shlex.join(member.command(find_etcd()))
    etcd = machine.popen("sh", "-c", f"exec {command} >given-etcd.log 2>&1")
    try:
        wait_until(member.answers)
        yield member.endpoint
        assert etcd.poll() is None, "an etcd that is not the cluster's was ended with it"
    finally:
        etcd.terminate()
        etcd.wait(timeout=SECONDS)
        ports.close()


def test_a_given_etcd_and_given_certificates_are_used(machine: SlurmMachine) -> None:
    """They are left as they are, and the etcd outlives the cluster."""
    certificates = machine.folder / "given"
    realloc(machine, "certs", "init", str(certificates), "--host", "127.0.0.1")
    before = (certificates / "etcd" / "tls.crt").read_bytes()
    with own_etcd(machine, certificates) as endpoint:
        up(machine, "--etcd-endpoints", endpoint, "--certificates", str(certificates))
        found = endpoints(machine)
        assert found["etcd"] == endpoint
        assert found["authority"] == str(certificates / "client" / "ca.crt")
        (report,) = realloc(machine, "doctor")
        statuses = {check["name"]: check["status"] for check in report["checks"]}
        assert statuses["etcd"] == statuses["certificates"] == "ok", report
        down(machine)
        assert_nothing_left(machine, found["slurm_job"])
    assert (certificates / "etcd" / "tls.crt").read_bytes() == before


def reports(machine: SlurmMachine, job_id: str) -> list[Any]:
    """What each iteration of a job measured."""
    (shown,) = realloc(machine, "job", "show", job_id)
    found: list[Any] = shown["reports"]
    return found


def set_minutes(machine: SlurmMachine, slurm_job: str, minutes: int) -> None:
    """Change a job's time limit, which the administrator of the tests' Slurm may."""
    machine.run("scontrol", "update", f"JobId={slurm_job}", f"TimeLimit={minutes}")


def elapsed_minutes(machine: SlurmMachine, slurm_job: str) -> int:
    """Whole minutes that a job has run."""
    hours, minutes, _ = machine.job_field(slurm_job, "RunTime").split(":")
    return 60 * int(hours) + int(minutes)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--partition", "gpus"), "'gpus' does not exist; there are test"),
        (("--nodes", "400"), "sbatch: .*(not available|specification invalid)"),
        (("--time", "tomorrow"), "time: is 'tomorrow'"),
        (("--python", "/nowhere/bin/python"), "/nowhere/bin/python cannot be run; give VENV"),
        (
            ("--etcd-endpoints", "127.0.0.1:1", "--sbatch-options=--nodelist=n9"),
            "Invalid node name",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits(
    machine: SlurmMachine, options: tuple[str, ...], complaint: str
) -> None:
    """Slurm's own complaints and ours come at once, and nothing is queued."""
    process = machine.popen(machine.python, "-m", "deploy.slurm", "up", "--dry-run=1", *options)
    output, _ = process.communicate(timeout=SECONDS)
    assert re.search(complaint, output), output
    assert machine.run("squeue", "-h") == ""
