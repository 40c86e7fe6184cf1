"""The health check of container engines."""

import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse


def probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as an engine does."""
    return subprocess.run(
        [sys.executable, "-m", "realloc.rpc.probe", *arguments],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("status", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_the_exit_status_is_the_health(status, code):
    """0 where the process serves, 1 where it says that it does not; the port may be that of the
    service's own environment."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("", STATUS.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = probe(REALLOC_HEALTH_PORT=str(port))
    finally:
        server.stop(0)
    assert (done.returncode, done.stdout.strip()) == (code, status)


def test_nobody_there_is_unhealthy_and_no_port_is_an_error():
    """A port that nobody listens on gives 1; without any port the message says what to set."""
    assert probe("1").returncode == 1
    done = probe()
    assert done.returncode == 2
    assert "REALLOC_HEALTH_PORT" in done.stderr
