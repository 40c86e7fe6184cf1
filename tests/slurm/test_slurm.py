"""The whole system as one Slurm job, on a Slurm of four virtual nodes."""

import json
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.slurm_machine import SlurmMachine

SECONDS = 240.0
"""Longest wait for a cluster or a job: four nodes of two cores are slow."""

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
    "call_timeout_seconds": 60,
}


def up(machine: SlurmMachine, *options: str) -> str:
    """Bring a cluster up; what the command printed."""
    process = machine.popen(
        machine.python, "-m", "deploy.slurm", "up", "--nodes", "4", "--reward-roots", ".", *options
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


def assert_nothing_left(machine: SlurmMachine, job_id: str) -> None:
    """No process of a Slurm job, no entry in the queue, no endpoints."""
    _, left = psutil.wait_procs(machine.processes_of(job_id), timeout=30)
    assert not left
    assert machine.run("squeue", "-h") == ""
    assert not (machine.folder / "run" / "endpoints.json").exists()


def test_a_ppo_job_runs_to_its_end_on_four_nodes(machine: SlurmMachine) -> None:
    """Trainers and replicas of four nodes do one job, and the end leaves nothing."""
    up(machine)
    slurm_job = endpoints(machine)["slurm_job"]
    job_id = submit(machine)
    updates = realloc(machine, "job", "watch", job_id)
    assert updates[-1]["job"]["state"] == "SUCCEEDED", updates[-1]
    assert (Path(updates[-1]["job"]["checkpoint"]) / "COMPLETE").exists()
    down(machine)
    assert machine.job_field(slurm_job, "JobState") == "COMPLETED"
    assert_nothing_left(machine, slurm_job)
