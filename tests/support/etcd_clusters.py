"""Clusters of several members of etcd."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer


@contextmanager
def three_members(folder: Path, *, tls_dir: Path | None = None) -> Iterator[list[EtcdServer]]:
    """Three members that run; a test may kill each of them."""
    servers = EtcdServer.cluster(find_etcd(), folder, 3, tls_dir=tls_dir)
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.close()
