"""Asks a process of this machine for its health: ``python -m realloc.rpc.probe [PORT]``.

For container engines, whose health checks are commands; Kubernetes asks by gRPC itself. PORT is
the process's ``health_port``, by default that of ``REALLOC_HEALTH_PORT``. Exit status 0 where
it serves.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROBE_SECONDS = 3.0


def main() -> int:
    port = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("REALLOC_HEALTH_PORT", "")
    if not port.isdecimal():
        print(
            "which port? give one, or set REALLOC_HEALTH_PORT as for the service", file=sys.stderr
        )
        return 2
    status = health_of(f"127.0.0.1:{port}")
    print(status)
    return 0 if status == "SERVING" else 1


def health_of(address: str) -> str:
    """``SERVING``, ``NOT_SERVING``, or the name of the code of a call that failed."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    sys.exit(main())
