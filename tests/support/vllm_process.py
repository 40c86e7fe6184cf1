"""What the processes of the engine's tests run: an engine, and a source of weights."""

from pathlib import Path
from typing import Any

import numpy as np

from realloc.core.transfer import TransferProgram, TransferSession
from services.generation.engine import EngineSpec, Rollout, RolloutRequest
from services.generation.vllm_engine import VllmEngine

HELD: dict[str, Any] = {}
"""What this test process keeps between calls."""


def load(spec: EngineSpec) -> float:
    """Load an engine, kept for the next calls; the process's memory afterwards in MiB."""
    if "engine" not in HELD:
        HELD["engine"] = VllmEngine(name="generation-0", transfer_host="127.0.0.1")
    HELD["engine"].load(spec)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def shapes() -> Any:
    """Shapes of the parameters per rank."""
    return [dict(rank) for rank in HELD["engine"].parameter_shapes()]


def generate(requests: list[RolloutRequest]) -> dict[str, Rollout]:
    """Run requests to their ends."""
    HELD["engine"].add(requests)
    return finish(len(requests))


def add(requests: list[RolloutRequest], steps: int) -> list[Rollout]:
    """Begin requests and advance them by some steps."""
    HELD["engine"].add(requests)
    return [rollout for _ in range(steps) for rollout in HELD["engine"].step()]


def abort(ids: list[str]) -> None:
    """Drop requests."""
    HELD["engine"].abort(ids)


def finish(count: int) -> dict[str, Rollout]:
    """Step until so many rollouts have ended."""
    done: dict[str, Rollout] = {}
    for _ in range(2_000):
        if len(done) == count and not HELD["engine"]._llm.llm_engine.has_unfinished_requests():
            return done
        done |= {rollout.request_id: rollout for rollout in HELD["engine"].step()}
    raise TimeoutError(f"only {sorted(done)} of {count} rollouts ended")


def stage(session: TransferSession, programs: list[TransferProgram]) -> Any:
    """Receive weights; digests per rank."""
    reports = HELD["engine"].stage_weights(session, programs)
    return [dict(report.received_digests) for report in reports]


def commit(version: int) -> None:
    """Make them live."""
    HELD["engine"].commit_weights(version)


def abort_weights() -> None:
    """Drop them."""
    HELD["engine"].abort_weights()


def write(tensors: dict[str, np.ndarray], version: int) -> None:
    """Write whole parameters straight into the live ones (one rank), by vLLM name."""
    import torch

    engine = HELD["engine"]
    receiver = engine._llm.collective_rpc(lambda worker: worker._realloc_receiver)[0]
    with torch.no_grad():
        for name, value in tensors.items():
            live = receiver._parameters[name]
            live[: len(value)].copy_(torch.from_numpy(value))
    engine.commit_weights(version)


def serve_store() -> tuple[str, int]:
    """Begin as the source of weights: where sessions meet."""
    from realloc.transfer.endpoint import TransferEndpoint

    HELD["endpoint"] = TransferEndpoint("127.0.0.1", "trainer-0")
    return HELD["endpoint"].store_host, HELD["endpoint"].store_port


def send(session: TransferSession, program: TransferProgram, folder: str) -> dict[Any, int]:
    """Send a Hugging Face folder's weights; digests by destination and canonical tensor."""
    from safetensors.torch import load_file

    source = load_file(f"{folder}/model.safetensors")
    report = HELD["endpoint"].run(session, program, source, {})
    return dict(report.sent_digests)


def close() -> None:
    """Free the engine."""
    HELD["engine"].close()
