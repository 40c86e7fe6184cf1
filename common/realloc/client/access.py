"""How a client shows who it is, and to whom it dares to."""

import os
from pathlib import Path

from realloc.addresses import host_of, is_loopback
from realloc.client.endpoints_file import read_endpoints
from realloc.core.errors import InvalidInput
from realloc.security.tls import ChannelSecurity, client_security


def security_towards(address: str, authority: str, token: str) -> ChannelSecurity | None:
    """What protects the way to a scheduler; None in the clear, on this machine.

    Args:
        address: ``host:port``.
        authority: file with the certificate of the cluster's authority; where empty REALLOC_CA,
            else what the endpoints file says of the cluster in the working folder.
        token: where empty REALLOC_TOKEN, else the text in REALLOC_TOKEN_FILE, else as above.

    Raises:
        InvalidInput: the address is another machine's and no authority is known, or a token
            would travel in the clear.
    """
    here = read_endpoints()
    known = here if here.get("scheduler") == address else {}
    authority = authority or os.environ.get("REALLOC_CA", "") or known.get("authority", "")
    token = token or default_token(known.get("token_file", ""))
    if authority:
        return client_security(Path(authority), token)
    if not is_loopback(host_of(address)):
        raise InvalidInput.at(
            "REALLOC_CA",
            f"is not set, and {address} is not this machine: set it to the ca.crt of the "
            "cluster's authority, which its operator has",
        )
    return None


def default_token(file: str = "") -> str:
    """REALLOC_TOKEN, else the text in REALLOC_TOKEN_FILE or in this file, else nothing.

    Raises:
        InvalidInput: the file cannot be read.
    """
    if token := os.environ.get("REALLOC_TOKEN", "").strip():
        return token
    path = os.environ.get("REALLOC_TOKEN_FILE", "") or file
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.at("REALLOC_TOKEN_FILE", f"{path} cannot be read: {error}") from error
