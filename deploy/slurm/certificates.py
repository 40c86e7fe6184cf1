"""Certificates of a deployment's processes and a token for its user, in the run folder."""

from pathlib import Path

from deploy.slurm.settings import SlurmSettings
from realloc.addresses import is_loopback
from realloc.security.certificates import make_certificates, renew_certificates
from realloc.security.roles import Role
from realloc.security.tokens import create_token

_USER = "slurm"


def prepare_certificates(settings: SlurmSettings, host: str) -> Path | None:
    """The folder of certificates; None where nothing leaves this machine.

    The deployment's own folder gets an authority on first use, and fresh certificates at every
    start, for the first node changes. One that was named in the settings is left as it is.

    Args:
        host: address of etcd and the scheduler.
    """
    named = settings.certificates
    if not (named or settings.always_encrypts) and is_loopback(host):
        return None
    folder = Path(named) if named else settings.run_dir / "certs"
    if not named:
        folder.mkdir(mode=0o700, exist_ok=True)
        issue = renew_certificates if (folder / "authority").exists() else make_certificates
        issue(folder, [host])
    if not token_file(folder).exists():
        token = create_token(tokens_file(folder), _USER, Role.OPERATOR, None)
        token_file(folder).touch(mode=0o600)
        token_file(folder).write_text(token + "\n")
    return folder


def tokens_file(folder: Path) -> Path:
    """Hashes of the tokens that the scheduler takes."""
    return folder / "tokens.json"


def token_file(folder: Path) -> Path:
    """The token of whoever can read the folder."""
    return folder / "token"
