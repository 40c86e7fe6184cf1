"""Measures what mutual TLS costs: calls, connections, and batches that shards pull.

    PYTHONPATH=common:. python -m tools.bench.tls [--megabytes 256] [--repeats 7]

A batch service in a process of its own, once in the clear and once with certificates; each figure
is the median of its repeats, and the two are measured in turn, so that a busy machine slows both.
"""

import argparse
import asyncio
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.config import ServiceConfig
from realloc.core.batch import Batch, BatchReference, RaggedArray
from realloc.rpc.channel import connect_sync
from realloc.rpc.server import App, running
from realloc.security.certificates import make_certificates
from realloc.security.tls import ChannelSecurity, peer_security
from realloc.shard.batch_reader import BatchReader, FieldGroup
from realloc.shard.batch_service import BatchServicer
from realloc.shard.batches import BatchStore
from realloc.telemetry.setup import start_logs

CALLS = 300
ROW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server, and how to talk to it."""

    address: str
    security: ChannelSecurity | None


def serve(tls_dir: str, megabytes: int, pipe: Connection) -> None:
    """A shard that keeps one batch, until it is terminated."""
    start_logs("shard", "error")
    asyncio.run(_serve(tls_dir, megabytes, pipe))


async def _serve(tls_dir: str, megabytes: int, pipe: Connection) -> None:
    batches = BatchStore(capacity_bytes=4 << 30)
    rows = [np.zeros(ROW_BYTES // 4, np.float32) for _ in range(megabytes)]
    batch = Batch(fields={"values": RaggedArray.from_rows(rows, "float32")})
    batches.put(job_id="bench", iteration=1, call="call", batch=batch)
    service = shard_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name
    app = App(
        servicers=[(shard_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(batches))],
        service_names=[service],
    )
    async with running(app, ServiceConfig(tls_dir=tls_dir)) as address:
        pipe.send(address)
        await asyncio.Event().wait()


def pull_seconds(served: Served, megabytes: int) -> float:
    """Pull the whole batch over a connection that stands."""
    reader = BatchReader(
        BatchStore(capacity_bytes=0), timeout_seconds=60.0, security=served.security
    )
    reference = BatchReference(
        address=served.address,
        key="bench/1/call",
        fields=("values",),
        rows=tuple(range(megabytes)),
        lengths=(ROW_BYTES // 4,) * megabytes,
    )
    try:
        reader.read([FieldGroup(fields=("values",), references=(_first_row(reference),))])
        started = time.perf_counter()
        reader.read([FieldGroup(fields=("values",), references=(reference,))])
        return time.perf_counter() - started
    finally:
        reader.close()


def _first_row(reference: BatchReference) -> BatchReference:
    return BatchReference(
        address=reference.address,
        key=reference.key,
        fields=reference.fields,
        rows=reference.rows[:1],
        lengths=reference.lengths[:1],
    )


def call_seconds(served: Served) -> float:
    """The median of many calls over one connection."""
    with connect_sync(served.address, security=served.security) as channel:
        stub = shard_pb2_grpc.BatchServiceStub(channel)
        request = shard_pb2.ReleaseBatchesRequest(job_id="none", before_iteration=1)
        stub.ReleaseBatches(request)
        seconds = []
        for _ in range(CALLS):
            started = time.perf_counter()
            stub.ReleaseBatches(request)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


def connect_seconds(served: Served) -> float:
    """A new connection and its first call."""
    started = time.perf_counter()
    with connect_sync(served.address, security=served.security) as channel:
        request = shard_pb2.ReleaseBatchesRequest(job_id="none", before_iteration=1)
        shard_pb2_grpc.BatchServiceStub(channel).ReleaseBatches(request)
        return time.perf_counter() - started


def compare(
    plain: Served, secured: Served, repeats: int, measure: Callable[[Served], float]
) -> tuple[float, float]:
    """Medians in the clear and over TLS, measured in turn."""
    pairs = [(measure(plain), measure(secured)) for _ in range(repeats + 1)][1:]
    clear, encrypted = zip(*pairs, strict=True)
    return statistics.median(clear), statistics.median(encrypted)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_certificates(Path(folder))

        def start(holder: str) -> Served:
            tls_dir = str(Path(folder, holder)) if holder else ""
            here, there = context.Pipe()
            process = context.Process(
                target=serve, args=(tls_dir, arguments.megabytes, there), daemon=True
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            security = peer_security(str(Path(folder, "scheduler"))) if holder else None
            return Served(address=here.recv(), security=security)

        plain, secured = start(""), start("trainer")
        measures: dict[str, Callable[[Served], float]] = {
            "call over one connection": call_seconds,
            "new connection and its first call": connect_seconds,
            f"pull of {arguments.megabytes} MiB": partial(
                pull_seconds, megabytes=arguments.megabytes
            ),
        }
        print("| | in the clear, ms | mutual TLS, ms | TLS / clear |\n|---|---|---|---|")
        for name, measure in measures.items():
            clear, encrypted = compare(plain, secured, arguments.repeats, measure)
            ratio = encrypted / clear
            print(
                f"| {name} | {clear * 1e3:.2f} | {encrypted * 1e3:.2f} | {ratio:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
