"""TLS between processes: a folder of three files, read again whenever they change.

Names follow cert-manager and Kubernetes' TLS secrets. The processes of a cluster trust one
authority of their own, so a certificate says what its holder *is*, not where it runs: pods and
Slurm nodes change their addresses, and a name of an address would say nothing about the role.
"""

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from realloc.core.errors import InvalidInput

AUTHORITY_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"

PEER_NAME = "peer.realloc.internal"
"""What every process of a cluster is called in its certificate, for the other processes."""
ENTRY_NAME = "scheduler.realloc.internal"
"""What only schedulers are called: clients send their tokens to nobody else."""
ETCD_NAME = "etcd.realloc.internal"
"""What only etcd's members are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What a folder held at one time, in PEM."""

    authority: bytes
    """Certificates of the authorities that this process trusts."""
    certificate: bytes
    """The process's own certificate and the intermediate ones after it."""
    key: bytes


class TlsFolder:
    """``ca.crt``, ``tls.crt`` and ``tls.key`` of one process. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            InvalidInput: a file is missing or unreadable, or they do not belong together.
        """
        self.folder = folder
        self._lock = threading.Lock()
        self._signature = self._sign()
        self._files = self._read()

    def files(self) -> TlsFiles:
        """The files as they are now; while they are being replaced, as they were before."""
        with self._lock:
            signature = self._sign()
            if signature != self._signature:
                try:
                    self._files = self._read()
                    self._signature = signature
                except InvalidInput:
                    pass  # half of a rotation: looked at again at the next connection
            return self._files

    def _read(self) -> TlsFiles:
        paths = [self.folder / name for name in (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE)]
        try:
            authority, certificate, key = (path.read_bytes() for path in paths)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=authority.decode())
            context.load_cert_chain(paths[1], paths[2])
        except (OSError, ValueError) as error:
            raise InvalidInput.at(
                "tls_dir", f"{self.folder} needs {', '.join(p.name for p in paths)}: {error}"
            ) from error
        return TlsFiles(authority=authority, certificate=certificate, key=key)

    def _sign(self) -> object:
        """Changes whenever a file is replaced or written."""
        found = []
        for name in (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE):
            try:
                status = (self.folder / name).stat()
            except OSError:
                return None
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def server_credentials(tls: TlsFolder, *, ask_clients: bool) -> grpc.ServerCredentials:
    """A server's side, which shows new files from the first handshake after their change.

    Args:
        ask_clients: a client without a certificate of the authority is refused in the handshake.
    """
    shown: TlsFiles | None = None

    def configuration() -> grpc.ServerCertificateConfiguration:
        nonlocal shown
        shown = tls.files()
        return grpc.ssl_server_certificate_configuration(
            [(shown.key, shown.certificate)], root_certificates=shown.authority
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        return None if tls.files() is shown else configuration()

    return grpc.dynamic_ssl_server_credentials(
        configuration(), changed, require_client_authentication=ask_clients
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSecurity:
    """How a client makes sure of its server, and shows who it is itself."""

    server_name: str
    """Name that the server's certificate must have."""
    credentials: Callable[[], grpc.ChannelCredentials]
    """For a connection that is opened now."""
    files: Callable[[], TlsFiles]
    """The same as files, to find out why a server refused them."""


def peer_security(tls_dir: str, *, server_name: str = PEER_NAME) -> ChannelSecurity | None:
    """Of a process among the processes of its cluster; None without a folder, where TLS is off.

    Raises:
        InvalidInput: the folder is not usable.
    """
    if not tls_dir:
        return None
    tls = TlsFolder(Path(tls_dir))

    def credentials() -> grpc.ChannelCredentials:
        files = tls.files()
        return grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)

    return ChannelSecurity(server_name=server_name, credentials=credentials, files=tls.files)


def client_security(authority: Path, token: str) -> ChannelSecurity:
    """Of a client outside of the cluster, who shows a token.

    Raises:
        InvalidInput: the authority's certificate cannot be read.
    """
    try:
        pem = authority.read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode())
    except (OSError, ValueError) as error:
        raise InvalidInput.at("REALLOC_CA", f"{authority} is no certificate: {error}") from error

    def credentials() -> grpc.ChannelCredentials:
        encrypted = grpc.ssl_channel_credentials(pem)
        if not token:
            return encrypted
        # Core sends them with each call, and never over a connection in the clear.
        return grpc.composite_channel_credentials(
            encrypted, grpc.access_token_call_credentials(token)
        )

    files = TlsFiles(authority=pem, certificate=b"", key=b"")
    return ChannelSecurity(server_name=ENTRY_NAME, credentials=credentials, files=lambda: files)
