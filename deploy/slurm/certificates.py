"""Certificates of a deployment's processes and a token for its user, in the run folder."""

from pathlib import Path

from realloc.security.certificates import make_certificates, renew_certificates
from realloc.security.roles import Role
from realloc.security.tokens import create_token

_USER = "slurm"


def prepare_certificates(folder: Path, host: str) -> None:
    """Make an authority and a token on first use; fresh certificates at every start, for the
    first node changes.

    Args:
        host: address of etcd and the scheduler.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "authority").exists():
        renew_certificates(folder, [host])
    else:
        make_certificates(folder, [host])
    if not token_file(folder).exists():
        token = create_token(tokens_file(folder), _USER, Role.OPERATOR, None)
        token_file(folder).touch(mode=0o600)
        token_file(folder).write_text(token + "\n")


def tokens_file(folder: Path) -> Path:
    """Hashes of the tokens that the scheduler takes."""
    return folder / "tokens.json"


def token_file(folder: Path) -> Path:
    """The token of whoever can read the folder."""
    return folder / "token"
