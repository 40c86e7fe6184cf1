"""Measures checkpoints on this machine against what the machine can do.

    PYTHONPATH=common:. python -m tools.bench.checkpoint [--megabytes 400] [--repeats 5]

Two ranks hold a Llama with its optimizer. The snapshot, for which a job waits, is compared with a
copy of as many bytes; the file that is written behind it with the same bytes through one
``write`` and fsync; restoring, into the same layout and into others, with reading the files.
Every figure is the median of its repeats; what is compared is measured in turn.
"""

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.settings import OptimizerSettings
from services.trainer.engine import ModelSpec
from tests.support.engine_ranks import EngineRanks, start_job
from tests.support.saved_states import save_state

RANKS = 2
SAVED = "d2t1p1"
RESTORED = ("d2t1p1", "d1t2p1", "d1t1p2")


def architecture(megabytes: int) -> ModelArchitecture:
    """A Llama whose checkpoint has about this size: 12 bytes per parameter."""
    layer = 12 * (1024 * (1024 + 2 * 256 + 1024) + 3 * 1024 * 2816)
    outer = 12 * 2 * 1024 * 4096
    layers = max(2, round((megabytes * 10**6 - outer) / layer))
    return ModelArchitecture(
        family="llama",
        num_layers=layers + layers % 2,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=4096,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )


def spec(model: ModelArchitecture, strategy: str, **more: Any) -> ModelSpec:
    """An actor that trains, from random weights."""
    return ModelSpec(
        model_id="actor",
        architecture=model,
        layout=Layout.parse(strategy),
        checkpoint="",
        seed=0,
        optimizer=OptimizerSettings(),
        **more,
    )


# What a rank runs.


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def saving(engine: Any, folder: Path, rank: int) -> dict[str, float]:
    """One snapshot, its file, and the same bytes in the plainest way."""
    from services.trainer.snapshot import write_snapshot

    path = folder / f"{rank}.safetensors"
    held: list[Any] = []
    found = {"snapshot": seconds_of(lambda: held.append(engine.snapshot()))}
    snapshot = held.pop()
    found["bytes"] = snapshot.num_bytes
    found["file"] = seconds_of(lambda: write_snapshot(snapshot, path, threading.Event()))
    source = torch.ones(int(found["bytes"]) // 4)
    found["copy"] = seconds_of(lambda: held.append(source.clone()))
    data = held.pop().numpy().tobytes()

    def plain() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    found["plain"] = seconds_of(plain)
    path.unlink()
    return found


def restoring(engine: Any, checkpoint: Any) -> float:
    return seconds_of(lambda: engine.restore(checkpoint))


def reading(engine: Any, checkpoint: Any, rank: int) -> float:
    """The rank's share of the files, read once."""
    path = checkpoint.path / checkpoint.manifest.files[rank].name
    return seconds_of(path.read_bytes)


# The tables.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model = architecture(arguments.megabytes)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {RANKS} ranks"
    )
    with EngineRanks(RANKS) as ranks, tempfile.TemporaryDirectory() as scratch:
        measure_saving(ranks, model, Path(scratch), arguments.repeats)
        measure_restoring(ranks, model, Path(scratch), arguments.repeats)


def measure_saving(
    ranks: EngineRanks, model: ModelArchitecture, scratch: Path, repeats: int
) -> None:
    start_job(ranks, RANKS)
    ranks.all(RANKS, "create_model", spec(model, SAVED))
    runs = [
        ranks.run(saving, [(scratch, rank) for rank in range(RANKS)]) for _ in range(repeats + 1)
    ][1:]  # the first touches memory for the first time
    ranks.all(RANKS, "end_job")
    size = sum(found["bytes"] for found in runs[0])

    def median(name: str) -> float:
        return statistics.median(max(found[name] for found in run) for run in runs)

    print(f"\nsaving {size / 1e6:.0f} MB from {SAVED}   seconds     GB/s   share of the bound")
    for name, bound in (("snapshot", "copy"), ("file", "plain")):
        seconds, least = median(name), median(bound)
        print(
            f"  {name:<9} against {bound:<6} {seconds:>17.3f} {size / seconds / 1e9:>8.2f}"
            f"   {least / seconds:.0%} of {size / least / 1e9:.2f} GB/s"
        )


def measure_restoring(
    ranks: EngineRanks, model: ModelArchitecture, scratch: Path, repeats: int
) -> None:
    saved = spec(model, SAVED)
    start_job(ranks, RANKS)
    ranks.all(RANKS, "create_model", saved)
    checkpoint = save_state(ranks, RANKS, scratch / "state", [saved], 0)
    ranks.all(RANKS, "end_job")
    size = checkpoint.manifest.num_bytes
    print(f"\nrestoring {size / 1e6:.0f} MB from {SAVED}   seconds     GB/s   with digests")
    read = statistics.median(
        max(ranks.run(reading, [(checkpoint, rank) for rank in range(RANKS)]))
        for _ in range(repeats)
    )
    print(f"  reading the files {read:>26.3f} {size / read / 1e9:>8.2f}   none")
    for strategy in RESTORED:
        start_job(ranks, RANKS)
        ranks.all(RANKS, "create_model", spec(model, strategy, empty=True))
        seconds = statistics.median(
            max(ranks.run(restoring, [(checkpoint,)] * RANKS)) for _ in range(repeats)
        )
        ranks.all(RANKS, "end_job")
        print(f"  into {strategy:<12} {seconds:>26.3f} {size / seconds / 1e9:>8.2f}   sha256")


if __name__ == "__main__":
    main()
