"""Checkpoints for resume without any service: rank processes write, the test commits."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from realloc.core.checkpoint_folder import (
    Checkpoint,
    CheckpointFolder,
    Manifest,
    SavedFile,
    open_checkpoint,
)
from services.trainer.engine import ModelSpec
from tests.support.engine_ranks import EngineRanks


def write_state(engine: Any, folder: Path, rank: int) -> tuple[SavedFile, tuple[str, ...]]:
    """Runs in a rank process."""
    from services.trainer.snapshot import write_snapshot

    snapshot = engine.snapshot()
    path = folder / f"rank-{rank:05d}.safetensors"
    return write_snapshot(snapshot, path, threading.Event()), snapshot.tensors


def save_state(
    ranks: EngineRanks, num_ranks: int, folder: Path, specs: Sequence[ModelSpec], versions: int
) -> Checkpoint:
    """Have every rank of the world write its state, and commit the checkpoint."""
    target = CheckpointFolder(folder)
    partial = target.begin(versions)
    written = ranks.run(write_state, [(partial, rank) for rank in range(num_ranks)])
    tensors: dict[str, tuple[int, ...]] = {}
    for number, (_, names) in enumerate(written):
        for name in names:
            tensors[name] = (*tensors.get(name, ()), number)
    manifest = Manifest(
        job_id="job",
        iteration=versions,
        weight_versions={spec.model_id: versions for spec in specs},
        kl_coefficient=0.1,
        layouts={spec.model_id: str(spec.layout) for spec in specs},
        architectures={
            spec.model_id: asdict(spec.architecture) | {"head": spec.architecture.head.value}
            for spec in specs
        },
        data_rows=1,
        files=tuple(file for file, _ in written),
        tensors=tensors,
    )
    return open_checkpoint(target.commit(manifest))
