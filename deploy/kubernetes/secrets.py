"""Certificates and tokens of a first cluster, as Secrets.

Secrets that are in the cluster already stay as they are: whoever has an authority of their own
makes them before (docs/security.md).
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.kubernetes.commands import Run
from deploy.kubernetes.manifests import NAMESPACE

HOLDERS: Mapping[str, str] = {
    "tls-etcd": "etcd",
    "tls-scheduler": "scheduler",
    "tls-plan-search": "plan_search",
    "tls-param-store": "param_store",
    "tls-trainer": "trainer",
    "tls-generation": "generation",
    "tls-operator": "operator",
}
"""Secrets of certificates, and whose folder each is made of."""
TOKENS = "tokens"
CLIENT = "client"
"""What the smoke job shows: the authority's certificate and an operator's token."""
ETCD_HOSTS = (
    *(f"etcd-{member}.etcd.{NAMESPACE}.svc" for member in range(3)),
    f"scheduler.{NAMESPACE}.svc",
)
"""Names that the certificates of etcd's members must have, and that of the schedulers."""


def ensure_secrets(kubectl: Callable[..., str], execute: Run, folder: Path) -> None:
    """Create each secret that is not there, from certificates and a token made in `folder`."""
    found = json.loads(kubectl("get", "secrets", "--output=json"))["items"]
    present = {item["metadata"]["name"] for item in found}
    missing = {*HOLDERS, TOKENS, CLIENT} - present
    if not missing:
        return
    make_credentials(execute, folder)
    for name in sorted(missing):
        options = [f"--from-file={path}" for path in files_of(name, folder)]
        kubectl("create", "secret", "generic", name, *options)


def files_of(name: str, folder: Path) -> tuple[Path, ...]:
    """What a secret is made of; each file is a key of it."""
    certs = folder / "certs"
    if name == TOKENS:
        return (folder / "tokens.json",)
    if name == CLIENT:
        return (certs / "client" / "ca.crt", folder / "token")
    return tuple(certs / HOLDERS[name] / file for file in ("ca.crt", "tls.crt", "tls.key"))


def make_credentials(execute: Run, folder: Path) -> None:
    """An authority, certificates, and an operator's token; kept where they are there already."""
    certs, token = folder / "certs", folder / "token"
    command = [sys.executable, "-m", "realloc.client.cli"]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (certs / "authority" / "ca.crt").exists():
        hosts = [word for host in ETCD_HOSTS for word in ("--host", host)]
        execute([*command, "certs", "init", str(certs), *hosts])
    if not token.exists():
        tokens = folder / "tokens.json"
        text = execute(
            [*command, "tokens", "create", "operator", "--role", "operator", "--file", str(tokens)]
        )
        token.touch(mode=0o600)
        token.write_text(text.strip().splitlines()[-1] + "\n")
