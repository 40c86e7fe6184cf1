"""Why a connection over TLS failed: a second handshake, only to hear the reason.

A server that refuses a certificate closes the connection, and gRPC says no more than that.
"""

import socket
import ssl
import tempfile
from pathlib import Path

from realloc.addresses import host_of
from realloc.security.tls import ChannelSecurity

_SECONDS = 2.0


_SIGNS = ("Socket closed", "Connection reset", "handshake", "verification")


def may_be_refused(details: str) -> bool:
    """Whether a failure to connect, in gRPC's words, may be the fault of certificates."""
    return "failed to connect" in details and any(sign in details for sign in _SIGNS)


def find_refusal(address: str, security: ChannelSecurity | None) -> str:
    """What is wrong between this process and the server; empty where nothing is. Blocking."""
    try:
        host, port = host_of(address), int(address.rpartition(":")[2])
        with socket.create_connection((host, port), timeout=_SECONDS) as plain:
            return _talk(plain, security)
    except (OSError, ValueError):
        return ""


def _talk(plain: socket.socket, security: ChannelSecurity | None) -> str:
    context = _unverified() if security is None else _context(security)
    name = None if security is None else security.server_name
    try:
        with context.wrap_socket(plain, server_hostname=name) as encrypted:
            if security is None:
                return "the server talks TLS only; set tls_dir, or REALLOC_CA in a client"
            # The server judges after the client has finished, and then says its first word.
            return "" if _hears(encrypted) else _unwelcome(security)
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is not good: {error.verify_message}"
    except ssl.SSLError as error:
        if security is None:
            return ""
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return "the server talks in the clear; give it a tls_dir, too"
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return f"{_unwelcome(security)} ({reason})" if "alert" in reason else reason


def _hears(encrypted: ssl.SSLSocket) -> bool:
    try:
        return bool(encrypted.recv(1))
    except ConnectionError:
        return False


def _unwelcome(security: ChannelSecurity) -> str:
    if not security.files().certificate:
        return "the server wants the certificate of a process, and this caller has none"
    return (
        "the server does not take this caller's certificate: it is of another authority or has "
        "expired; `realloc certs show` on its tls_dir tells"
    )


def _context(security: ChannelSecurity) -> ssl.SSLContext:
    files = security.files()
    context = ssl.create_default_context(cadata=files.authority.decode())
    context.set_alpn_protocols(["h2"])
    if files.certificate:
        with tempfile.TemporaryDirectory(prefix="realloc-tls-") as folder:  # mode 0700
            pair = Path(folder, "pair.pem")
            pair.write_bytes(files.certificate + files.key)
            context.load_cert_chain(pair)
    return context


def _unverified() -> ssl.SSLContext:
    """Only tells whether a server talks TLS; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
