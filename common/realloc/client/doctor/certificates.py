"""Check of certificates: those that servers show, and the doctor's own."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from realloc.addresses import host_of
from realloc.client.doctor.findings import CheckResult, Finding, Status
from realloc.security.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE

SOON_DAYS = 30.0
_MOST_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """A certificate and when it ends."""

    holder: str
    """Who shows it, or the file it stands in."""
    expires: datetime
    """UTC."""


async def check_certificates(
    tls_dir: str, addresses: Mapping[str, str], *, timeout: float
) -> CheckResult:
    """Look at the certificate of every process that answers, by name and address."""
    from realloc.security.certificates import read_certificate  # needs cryptography

    gate = asyncio.Semaphore(_MOST_AT_ONCE)

    async def look(name: str, address: str) -> Expiry | None:
        async with gate:
            return await asyncio.to_thread(_shown, name, address, Path(tls_dir), timeout)

    shown = await asyncio.gather(*(look(*each) for each in addresses.items()))
    own = [read_certificate(Path(tls_dir, name)) for name in (CERTIFICATE_FILE, AUTHORITY_FILE)]
    found = [each for each in shown if each is not None]
    found += [Expiry(holder=str(each.path), expires=each.expires) for each in own]
    return judge_certificates(found, datetime.now(UTC))


def judge_certificates(found: list[Expiry], now: datetime) -> CheckResult:
    """Which have ended, and which end soon."""
    first = min(found, key=lambda each: each.expires)
    return CheckResult(
        name="certificates",
        summary=f"{len(found)} seen; the first to expire is {first.holder}'s, on "
        f"{first.expires:%Y-%m-%d}",
        findings=[*_expiring(found, now)],
    )


def _expiring(found: list[Expiry], now: datetime) -> Iterator[Finding]:
    for each in found:
        days = (each.expires - now).total_seconds() / 86400
        if days < SOON_DAYS:
            yield Finding(
                status=Status.FAILED if days < 0 else Status.WARNING,
                subject=each.holder,
                problem=f"its certificate expired on {each.expires:%Y-%m-%d}"
                if days < 0
                else f"its certificate expires in {days:.0f} days",
                advice="`realloc certs renew DIR`, then copy its folder; no restart is needed",
            )


def _shown(name: str, address: str, tls_dir: Path, timeout: float) -> Expiry | None:
    """What a server shows, be it good or not; None where it does not answer."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at: nothing is sent
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tls_dir / CERTIFICATE_FILE, tls_dir / KEY_FILE)
    try:
        place = host_of(address), int(address.rpartition(":")[2])
        with (
            socket.create_connection(place, timeout=timeout) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            shown = encrypted.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
    if shown is None:
        return None
    certificate = x509.load_der_x509_certificate(shown)
    return Expiry(holder=name, expires=certificate.not_valid_after_utc)
