"""``realloc certs``: certificates of a first cluster."""

import argparse
import json
from datetime import UTC, datetime

from realloc.core.errors import InvalidInput
from realloc.security.certificates import (
    CertificateFacts,
    make_certificates,
    read_certificates,
    renew_certificates,
)

SOON_DAYS = 30.0
"""A certificate that expires sooner is pointed out."""


def init(arguments: argparse.Namespace) -> int:
    """Make an authority and a certificate for every role."""
    make_certificates(arguments.folder, arguments.host, days=_days(arguments))
    return _tell(arguments)


def renew(arguments: argparse.Namespace) -> int:
    """Replace every certificate by a fresh one of the same authority."""
    renew_certificates(arguments.folder, arguments.host, days=_days(arguments))
    return _tell(arguments)


def show(arguments: argparse.Namespace) -> int:
    """Holders, names and dates; 1 where a certificate has expired."""
    now = datetime.now(UTC)
    found = read_certificates(arguments.folder)
    if arguments.json:
        print(json.dumps([_plain(each, now) for each in found]))
    else:
        for each in found:
            print(_line(each, now))
    return 1 if any(each.days_left(now) < 0 for each in found) else 0


def _tell(arguments: argparse.Namespace) -> int:
    status = show(arguments)
    if not arguments.json:
        print(
            f"\nGive each process its folder as tls_dir, clients {arguments.folder}/client/ca.crt "
            f"as REALLOC_CA. Keep {arguments.folder}/authority off the cluster.\n"
            "`realloc tokens create NAME` lets people in."
        )
    return status


def _days(arguments: argparse.Namespace) -> int:
    if arguments.days < 1:
        raise InvalidInput.at("--days", f"is {arguments.days} and must be at least 1")
    return int(arguments.days)


def _line(facts: CertificateFacts, now: datetime) -> str:
    left = facts.days_left(now)
    note = "EXPIRED" if left < 0 else f"{left:.0f} days left"
    if 0 <= left < SOON_DAYS:
        note += ": renew it"
    names = ", ".join(facts.names)
    return (
        f"{facts.path}  {facts.holder}  until {facts.expires:%Y-%m-%d} ({note})  {names}".rstrip()
    )


def _plain(facts: CertificateFacts, now: datetime) -> dict[str, object]:
    return {
        "path": str(facts.path),
        "holder": facts.holder,
        "names": list(facts.names),
        "expires": facts.expires.isoformat(),
        "days_left": round(facts.days_left(now), 2),
    }
