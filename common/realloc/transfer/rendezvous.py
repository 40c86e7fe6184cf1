"""Where the endpoints of a transfer find each other."""

import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore  # where torch declares its type
from torch.distributed import DistError

from realloc.core.errors import Unavailable


class TransferStore:
    """A TCPStore that this process serves to all endpoints of its transfers.

    It listens on one address only, and on a port that the kernel chose, so several processes
    of a host never compete for one.
    """

    def __init__(self, host: str) -> None:
        """Serve on `host`, an address of this machine that the other endpoints reach."""
        listener = socket.create_server((host, 0), backlog=512)
        self.host = host
        self.port: int = listener.getsockname()[1]
        self._store: TCPStore | None = TCPStore(
            host_name=host,
            port=self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
            # The store owns the descriptor from here on.
            master_listen_fd=listener.detach(),
        )

    def close(self) -> None:
        """Stop serving; groups that already met go on. Safe to call twice."""
        self._store = None


def connect_store(host: str, port: int, timeout_seconds: float) -> TCPStore:
    """Join the store that another process (or this one) serves.

    Raises:
        Unavailable: nobody serves there within the time.
    """
    try:
        return TCPStore(
            host_name=host,
            port=port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
    except (RuntimeError, DistError) as error:
        raise Unavailable(
            f"no transfer store at {host}:{port} within {timeout_seconds:g} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
