"""A certificate authority for a first cluster, and a certificate for each role.

    DIR/authority/ca.crt, ca.key              ca.key signs: keep it off the cluster
    DIR/<role>/ca.crt, tls.crt, tls.key       what a process of this role is given
    DIR/operator/…                            for people who run the cluster
    DIR/client/ca.crt                         what clients need, beside their token

Larger places have an authority already, such as cert-manager: a process only wants a
certificate with its role as common name and the DNS names of `names_of`.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from realloc.addresses import is_loopback
from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.security.roles import PROCESSES, Role
from realloc.security.tls import (
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    ENTRY_NAME,
    ETCD_NAME,
    KEY_FILE,
    PEER_NAME,
)

ETCD = "etcd"
AUTHORITY = "authority"
CLIENT = "client"
HOLDERS = (*PROCESSES, Role.OPERATOR, ETCD)
"""Who gets a certificate."""

AUTHORITY_DAYS = 3650
DEFAULT_DAYS = 365
_LOOPBACK = ("localhost", "127.0.0.1")
_CLOCK_SKEW = timedelta(minutes=10)
"""Certificates begin a little earlier, for machines whose clock is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a certificate says."""

    path: Path
    holder: str
    """Its common name."""
    names: tuple[str, ...]
    """DNS names and IP addresses that it is good for."""
    expires: datetime
    """UTC."""

    def days_left(self, now: datetime) -> float:
        """Days until it expires; negative afterwards."""
        return (self.expires - now) / timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def names_of(holder: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """DNS names and addresses that a holder's certificate must have."""
    if holder == ETCD:  # its members check the addresses of each other
        return (ETCD_NAME, *dict.fromkeys((*_LOOPBACK, *hosts)))
    if holder == Role.SCHEDULER:
        return (PEER_NAME, ENTRY_NAME, *dict.fromkeys((*_LOOPBACK, *hosts)))
    return (PEER_NAME,)


def make_certificates(folder: Path, hosts: Sequence[str] = (), *, days: int = DEFAULT_DAYS) -> None:
    """Make an authority and a certificate for each holder.

    Args:
        hosts: DNS names (``*.`` may begin them) and IP addresses of the hosts that run etcd and
            schedulers; loopback is always among them.
        days: how long the certificates are valid; the authority lasts ten years.

    Raises:
        Conflict: the folder has an authority already.
    """
    home = folder / AUTHORITY
    if (home / AUTHORITY_FILE).exists():
        raise Conflict(f"{folder} has an authority already; `realloc certs renew` uses it again")
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Realloc cluster authority")
    builder = _builder(name, name, key, AUTHORITY_DAYS, is_authority=True)
    signer = _Signer(builder.sign(key, hashes.SHA256()), key)
    _write(home / "ca.key", _key_pem(key), secret=True)
    _write(home / AUTHORITY_FILE, _pem(signer.certificate))
    _issue_all(folder, signer, hosts, days)


def renew_certificates(
    folder: Path, hosts: Sequence[str] = (), *, days: int = DEFAULT_DAYS
) -> None:
    """Replace every holder's certificate by a fresh one of the same authority.

    Args:
        hosts: as for `make_certificates`; none keeps those that the present ones have.

    Raises:
        NotFound: the folder has no authority.
    """
    home = folder / AUTHORITY
    try:
        certificate = x509.load_pem_x509_certificate((home / AUTHORITY_FILE).read_bytes())
        key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
    except OSError as error:
        raise NotFound(f"{folder} has no authority: {error}; `realloc certs init` makes one") from (
            error
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput.at(str(home), f"holds something else: {error}") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    if not hosts:
        present = read_certificate(folder / ETCD / CERTIFICATE_FILE).names
        hosts = [name for name in present if name != ETCD_NAME and not is_loopback(name)]
    _issue_all(folder, _Signer(certificate, key), hosts, days)


def read_certificates(folder: Path) -> tuple[CertificateFacts, ...]:
    """Every certificate of a folder and the folders below it, by path; copies count once.

    Raises:
        NotFound: there is none.
        InvalidInput: a file ``*.crt`` holds something else.
    """
    paths = sorted(folder.rglob("*.crt"), reverse=True)
    first = {path.read_bytes(): path for path in paths}  # of equal ones the first path stays
    found = tuple(read_certificate(path) for path in sorted(first.values()))
    if not found:
        raise NotFound(f"{folder} holds no certificates (*.crt); `realloc certs init` makes some")
    return found


def read_certificate(path: Path) -> CertificateFacts:
    """What the first certificate of a file says.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput.at(str(path), f"is no certificate: {error}") from error
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateFacts(
        path=path,
        holder=str(common[0].value) if common else "",
        names=_names(certificate),
        expires=certificate.not_valid_after_utc,
    )


def _issue_all(folder: Path, signer: _Signer, hosts: Sequence[str], days: int) -> None:
    authority = _pem(signer.certificate)
    for holder in HOLDERS:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _issue(signer, key, holder, names_of(holder, hosts), days)
        _write(folder / holder / AUTHORITY_FILE, authority)
        _write(folder / holder / KEY_FILE, _key_pem(key), secret=True)
        _write(folder / holder / CERTIFICATE_FILE, _pem(certificate))
    _write(folder / CLIENT / AUTHORITY_FILE, authority)


def _issue(
    signer: _Signer,
    key: ec.EllipticCurvePrivateKey,
    holder: str,
    names: Sequence[str],
    days: int,
) -> x509.Certificate:
    builder = _builder(
        _name(holder), signer.certificate.subject, key, days, is_authority=False
    ).add_extension(x509.SubjectAlternativeName([_general_name(each) for each in names]), False)
    # Both uses: whoever serves here also calls, and etcd's gateway calls its own member.
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return (
        builder.add_extension(x509.ExtendedKeyUsage(uses), False)
        .add_extension(identifier, False)
        .sign(signer.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    is_authority: bool,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
        .add_extension(_key_usage(is_authority), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise InvalidInput.at("--host", f"{name!r} is no DNS name: {error}") from error


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(each.value) for each in found)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Replace a file at once; one that is secret can never be read by others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    mode = 0o600 if secret else 0o644
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    fresh.replace(path)
