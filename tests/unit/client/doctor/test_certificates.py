"""Certificates as the doctor sees them, on real handshakes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from realloc.client.doctor.certificates import check_certificates
from realloc.client.doctor.findings import CheckResult, Status
from realloc.security.certificates import make_certificates


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The doctor's own folder, good for a year."""
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder)
    return folder / "operator"


def self_signed(folder: Path, days_left: int) -> ssl.SSLContext:
    """A server's side with a certificate that ends in so many days, or has ended."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainer")])
    end = datetime.now(UTC) + timedelta(days=days_left, hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=400))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair = folder / "pair.pem"
    pair.write_bytes(certificate.public_bytes(encoding) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


@asynccontextmanager
async def serving(context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Something that listens, and says nothing."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def examine(operator: Path, **servers: ssl.SSLContext | None) -> CheckResult:
    async def run() -> CheckResult:
        async with asyncio.timeout(120), AsyncExitStack() as stack:
            addresses = {"gone": "127.0.0.1:1"}
            for name, context in servers.items():
                addresses[name] = await stack.enter_async_context(serving(context))
            return await check_certificates(str(operator), addresses, timeout=4.0)

    return asyncio.run(run())


def test_an_expired_certificate_is_found(operator: Path, tmp_path: Path) -> None:
    """The process that shows it is named, and how to renew; others and the silent are not."""
    expired, good = self_signed(tmp_path / "old", -3), self_signed(tmp_path / "new", 300)
    result = examine(operator, trainer_0=expired, trainer_1=good, plain=None)
    (finding,) = result.findings
    assert (finding.subject, finding.status) == ("trainer_0", Status.FAILED)
    assert "expired on" in finding.problem
    assert "realloc certs renew" in finding.advice
    assert result.summary.startswith("4 seen; the first to expire is trainer_0's")


def test_a_certificate_that_expires_soon_is_a_warning(operator: Path, tmp_path: Path) -> None:
    """Days before it happens."""
    (finding,) = examine(operator, etcd=self_signed(tmp_path / "soon", 10)).findings
    assert finding.status is Status.WARNING
    assert finding.problem == "its certificate expires in 10 days"
