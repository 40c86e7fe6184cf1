"""A service as a process: signals, and starts that fail."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from realloc.rpc.channel import connect_sync
from tests.integration.echo_service import SERVICE, EchoStub

REPOSITORY = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
START_SECONDS = EXIT_SECONDS = 120.0


@contextmanager
def echo_process(events: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join((str(REPOSITORY / "common"), str(REPOSITORY)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.echo_main", str(events), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=EXIT_SECONDS)


def wait_for(events: Path, word: str) -> str:
    """The line of the process's notes that begins with a word."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in events.read_text().splitlines() if events.exists() else ():
            if line.startswith(word):
                return line
        time.sleep(0.02)  # polls another process's file; the deadline decides
    raise AssertionError(f"no {word!r} within {START_SECONDS:g} s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_a_process(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT deregister, let the running stream end, flush spans, exit with 0."""
    events = tmp_path / "events"
    arguments = ("--trace-dir", str(tmp_path), "--name", "echo-0", "--drain-seconds", "1")
    with echo_process(events, *arguments) as process:
        address = wait_for(events, "registered").split()[1]
        with connect_sync(address) as channel:
            stub = EchoStub(channel)
            assert stub.Say(StringValue(value="hello")).value == "hello"
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
            process.send_signal(number)
            _, log = process.communicate(timeout=EXIT_SECONDS)
        assert process.returncode == 0, log
    assert events.read_text().split("\n") == [
        "built",
        f"started {address}",
        f"registered {address}",
        "deregistered",
        "draining",
        "closed",
        "",
    ]
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["serving", "draining"]
    assert f"{SERVICE}/Say" in (tmp_path / "echo-0.otlp.jsonl").read_text()


def test_a_signal_before_the_start_cancels_it(tmp_path: Path) -> None:
    """A service that is told to stop while it is being built cleans up and exits with 0."""
    events = tmp_path / "events"
    with echo_process(events, "--name", "slow-builder") as process:
        wait_for(events, "built")
        process.terminate()
        assert process.wait(timeout=EXIT_SECONDS) == 0
    assert events.read_text().split() == ["built", "build", "cancelled"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--port={taken}", "cannot listen on 127.0.0.1:{taken}"),
        ("--tls-dir=absent", "absent needs ca.crt, tls.crt, tls.key: "),
    ],
)
def test_a_service_that_cannot_start_says_why(tmp_path: Path, argument: str, reason: str) -> None:
    """An error of ours at the start is one log line and exit status 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        taken = occupied.getsockname()[1]
        with echo_process(tmp_path / "events", argument.format(taken=taken)) as process:
            _, log = process.communicate(timeout=EXIT_SECONDS)
    assert process.returncode == 1
    event = json.loads(log.splitlines()[-1])
    assert event["event"] == "stopped"
    assert reason.format(taken=taken) in event["reason"]
    assert "Traceback" not in log


def test_a_service_refuses_to_be_reached_in_the_clear(tmp_path: Path) -> None:
    """An address beyond loopback without certificates: exit status 2, and what to do."""
    with echo_process(tmp_path / "events", "--host", "203.0.113.1") as process:
        _, log = process.communicate(timeout=EXIT_SECONDS)
    assert process.returncode == 2
    assert log.startswith("host: 203.0.113.1 is not loopback")
    assert "realloc certs init" in log
    assert not (tmp_path / "events").exists()
