"""A local cluster of real processes for tests, on a thread of its own."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.local.cluster import LocalCluster, LocalSettings
from realloc.client.client import Client
from realloc.client.experiment_file import parse_experiment
from realloc.core.experiment import Experiment
from realloc.core.job import IterationReport
from tests.tiny_models import tiny_config, tiny_tokenizer

START_SECONDS = 600.0
STOP_SECONDS = 60.0

REWARDS = """
import time

def exact(prompt, response, ground_truth, **fields):
    return 1.0 if response == ground_truth else 0.0

def digits(prompt, response, ground_truth, **fields):
    return sum(character.isdigit() for character in response) / 4

def broken(prompt, response, ground_truth, **fields):
    raise ValueError("no such answer")

def endless(prompt, response, ground_truth, **fields):
    time.sleep(1000)
"""


class RunningCluster:
    """Starts when entered; every process is gone when left."""

    def __init__(self, folder: Path, *, num_devices: int = 2) -> None:
        self.folder = folder
        self._settings = LocalSettings(
            run_dir=folder / "run", num_devices=num_devices, reward_roots=(str(folder),)
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._cluster = LocalCluster(self._settings, self._note)
        self.notes: list[str] = []
        """What the supervisor said."""

    @property
    def endpoints(self) -> Mapping[str, str]:
        return self._cluster.endpoints

    def pids(self) -> Mapping[str, int]:
        """Process ids by name."""
        return self._cluster.pids()

    def kill(self, name: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to one process."""
        os.kill(self.pids()[name], number)

    def stop(self, name: str) -> None:
        """End one process for good: the supervisor does not start it again."""
        self._run(self._cluster.supervised(name).stop())

    def start(self, name: str) -> None:
        """Start a process that was stopped."""
        self._run(self._cluster.supervised(name).start())

    def client(self) -> Client:
        """A client of the scheduler that runs now."""
        return Client(self.endpoints["scheduler"])

    def wait_ready(self) -> None:
        """Wait until every process is registered again; the endpoints are read anew."""
        self._run(self._cluster.wait_ready())

    def logs(self, name: str) -> str:
        """What a process wrote."""
        return (self._settings.run_dir / "logs" / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        write_task(self.folder)
        self._thread.start()
        self._run(self._cluster.start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        family = []
        for pid in self.pids().values():
            with suppress(psutil.NoSuchProcess):  # it may be ending by itself
                process = psutil.Process(pid)
                family += [process, *process.children(True)]
        self._run(self._cluster.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        self._loop.close()
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        assert not left, f"processes are left: {left}"

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def _note(self, text: str) -> None:
        self.notes.append(text)


def write_task(folder: Path) -> None:
    """A tiny model's configuration, a data set of additions, and reward functions."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    config = tiny_config("llama", max_position_embeddings=64, initializer_range=0.1)
    (model / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(model)
    rows = [
        {"prompt": f"{a}+{b}=", "completion": str(a + b), "ground_truth": str(a + b)}
        for a in range(8)
        for b in range(8)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::5]))
    (folder / "rewards.py").write_text(REWARDS)


def experiment(folder: Path, algorithm: str, **changes: Any) -> Experiment:
    """A small experiment on the tiny task; changes replace top-level fields."""
    return parse_experiment(plain_experiment(folder, algorithm, **changes))


def plain_experiment(folder: Path, algorithm: str, **changes: Any) -> dict[str, Any]:
    """The same as a YAML file would have it."""
    plain: dict[str, Any] = {
        "name": f"test-{algorithm}",
        "algorithm": algorithm,
        "iterations": 2,
        "seed": 7,
        "actor": {
            "checkpoint": str(folder / "model"),
            "random_weights": True,
            "optimizer": {"learning_rate": 1e-3},
        },
        "data": {"path": str(folder / "train.jsonl"), "batch_size": 16},
        "reward": {"function": f"{folder / 'rewards.py'}:digits"},
        "evaluation": {"path": str(folder / "heldout.jsonl")},
        "generation": {"max_new_tokens": 4},
        "ppo": {"mini_batches": 2},
        "pins": {"actor_train": "d1t2p1@0-1", "actor_gen": "d2t1p1@0-1"},
        "call_timeout_seconds": 300,
    }
    return {**plain, **changes}


def numbers(reports: Sequence[IterationReport]) -> list[dict[str, float]]:
    """The metrics of each iteration that do not measure time."""
    return [
        {name: value for name, value in report.metrics.items() if not name.startswith("perf/")}
        for report in reports
    ]
