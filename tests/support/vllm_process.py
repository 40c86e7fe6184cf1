"""What the processes of the engine's tests run: an engine, and a source of weights."""

import asyncio
import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from realloc.core.transfer import TransferProgram, TransferSession
from services.generation.engine import EngineSpec, Rollout, RolloutRequest
from services.generation.rollout_worker import RolloutCounters, RolloutWorker
from services.generation.vllm_engine import VllmEngine

HELD: dict[str, Any] = {}
"""What this test process keeps between calls."""
THREAD = ThreadPoolExecutor(1, thread_name_prefix="engine")
"""Owns the engine, as in the service: not the main thread."""


def in_engine_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, run by the thread that owns the engine."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return THREAD.submit(function, *arguments).result()

    return run


@in_engine_thread
def load(spec: EngineSpec) -> float:
    """Load an engine, kept for the next calls; the process's memory afterwards in MiB."""
    # The test's processes are daemons, so that none outlives it; daemons may have no children,
    # and a tensor parallel engine has workers. They end with the engine's pipes.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if "engine" not in HELD:
        HELD["engine"] = VllmEngine(name="generation-0", transfer_host="127.0.0.1")
    HELD["engine"].load(spec)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@in_engine_thread
def shapes() -> Any:
    """Shapes of the parameters per rank."""
    return [
        {name: spec.shape for name, spec in rank.items()}
        for rank in HELD["engine"].parameter_specs()
    ]


@in_engine_thread
def generate(requests: list[RolloutRequest]) -> dict[str, Rollout]:
    """Run requests to their ends."""
    HELD["engine"].add(requests)
    return _finish(len(requests))


@in_engine_thread
def add(requests: list[RolloutRequest], steps: int) -> list[Rollout]:
    """Begin requests and advance them by some steps."""
    HELD["engine"].add(requests)
    return [rollout for _ in range(steps) for rollout in HELD["engine"].step()]


@in_engine_thread
def abort(ids: list[str]) -> None:
    """Drop requests."""
    HELD["engine"].abort(ids)


@in_engine_thread
def finish(count: int) -> dict[str, Rollout]:
    """Step until so many rollouts have ended."""
    return _finish(count)


def _finish(count: int) -> dict[str, Rollout]:
    done: dict[str, Rollout] = {}
    for _ in range(2_000):
        if len(done) == count and not HELD["engine"]._llm.llm_engine.has_unfinished_requests():
            return done
        done |= {rollout.request_id: rollout for rollout in HELD["engine"].step()}
    raise TimeoutError(f"only {sorted(done)} of {count} rollouts ended")


@in_engine_thread
def stage(session: TransferSession, programs: list[TransferProgram]) -> Any:
    """Receive weights; digests per rank."""
    reports = HELD["engine"].stage_weights(session, programs)
    return [dict(report.received_digests) for report in reports]


@in_engine_thread
def commit(version: int) -> None:
    """Make them live."""
    HELD["engine"].commit_weights(version)


@in_engine_thread
def abort_weights() -> None:
    """Drop them."""
    HELD["engine"].abort_weights()


@in_engine_thread
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


def generate_through_worker(
    spec: EngineSpec, requests: list[RolloutRequest]
) -> tuple[dict[str, Rollout], RolloutCounters]:
    """Run requests as the service does: the engine in a thread of its own, load to close."""
    THREAD.submit(HELD.pop("engine").close).result()

    async def main() -> tuple[dict[str, Rollout], RolloutCounters]:
        worker = RolloutWorker(VllmEngine(name="generation-0", transfer_host="127.0.0.1"))
        try:
            await worker.load(spec, timeout_seconds=120)
            stream = worker.generate(requests, timeout_seconds=60)
            return {one.request_id: one async for one in stream}, worker.counters
        finally:
            await worker.close()

    return asyncio.run(main())
