"""Certificates and tokens of a first cluster: what is written, who can read it, what it says."""

import json
import ssl
import stat
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from realloc.client.cli import main
from realloc.core.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from realloc.security.certificates import (
    HOLDERS,
    make_certificates,
    read_certificate,
    renew_certificates,
)
from realloc.security.roles import Role
from realloc.security.tls import ENTRY_NAME, ETCD_NAME, PEER_NAME, TlsFolder
from realloc.security.tokens import TokenFile, create_token, load_tokens, revoke_token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certs")
    make_certificates(made, ["10.0.0.1", "*.etcd.realloc.svc"], days=90)
    return made


def test_every_holder_gets_a_folder_that_is_usable(folder: Path) -> None:
    """Key, certificate and authority of each belong together."""
    for holder in HOLDERS:
        files = TlsFolder(folder / holder).files()
        assert files.authority == (folder / "client" / "ca.crt").read_bytes()
        assert read_certificate(folder / holder / "tls.crt").holder == holder


def test_keys_are_for_their_owner_only(folder: Path) -> None:
    """Mode 0600 for every key, the authority's too."""
    keys = sorted(folder.rglob("*.key"))
    assert len(keys) == len(HOLDERS) + 1
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_names_say_what_a_process_is(folder: Path) -> None:
    """Only schedulers may be taken for the entry, only etcd for etcd, and hosts are theirs."""
    names = {holder: read_certificate(folder / holder / "tls.crt").names for holder in HOLDERS}
    assert {holder for holder in names if ENTRY_NAME in names[holder]} == {"scheduler"}
    assert {holder for holder in names if ETCD_NAME in names[holder]} == {"etcd"}
    assert {holder for holder in names if PEER_NAME in names[holder]} == {*HOLDERS} - {"etcd"}
    for holder in ("scheduler", "etcd"):
        assert {"10.0.0.1", "*.etcd.realloc.svc", "localhost"} <= set(names[holder])


def test_an_authority_is_never_replaced(folder: Path) -> None:
    """A second init would cut every running process off."""
    before = (folder / "client" / "ca.crt").read_bytes()
    with pytest.raises(Conflict, match="renew"):
        make_certificates(folder)
    assert (folder / "client" / "ca.crt").read_bytes() == before


def test_renewed_certificates_are_of_the_same_authority(tmp_path: Path) -> None:
    """New keys and dates, the same hosts; old and new processes go on trusting each other."""
    make_certificates(tmp_path, ["10.0.0.1"], days=1)
    tls = TlsFolder(tmp_path / "trainer")
    old, before = tls.files(), read_certificate(tmp_path / "etcd" / "tls.crt")
    renew_certificates(tmp_path)
    new, after = tls.files(), read_certificate(tmp_path / "etcd" / "tls.crt")
    assert new.authority == old.authority
    assert new.key != old.key
    assert after.names == before.names
    now = datetime.now(UTC)
    assert before.days_left(now) < 1 < 364 < after.days_left(now)
    with pytest.raises(NotFound, match="certs init"):
        renew_certificates(tmp_path / "absent")


def test_half_a_rotation_is_not_shown(tmp_path: Path) -> None:
    """A certificate without its key yet is passed over, and taken once both are there."""
    make_certificates(tmp_path / "a")
    make_certificates(tmp_path / "b")
    tls = TlsFolder(tmp_path / "a" / "trainer")
    before = tls.files()
    for name in ("tls.crt", "ca.crt", "tls.key"):
        assert tls.files() == before
        (tmp_path / "b" / "trainer" / name).replace(tmp_path / "a" / "trainer" / name)
    assert tls.files() != before


@pytest.mark.parametrize("broken", ["absent", "foreign key", "no certificate"])
def test_a_folder_that_is_not_usable_is_refused(tmp_path: Path, broken: str) -> None:
    """The message names the folder."""
    make_certificates(tmp_path)
    if broken == "absent":
        (tmp_path / "trainer" / "tls.key").unlink()
    elif broken == "foreign key":
        (tmp_path / "scheduler" / "tls.key").replace(tmp_path / "trainer" / "tls.key")
    else:
        (tmp_path / "trainer" / "ca.crt").write_text("nothing")
    with pytest.raises(InvalidInput, match="trainer needs"):
        TlsFolder(tmp_path / "trainer")


def test_the_command_shows_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """init, renew and show print each certificate once; an expired one is status 1."""
    assert main(["certs", "init", str(tmp_path), "--host", "10.0.0.1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {each["holder"] for each in made} == {*HOLDERS, "Realloc cluster authority"}
    assert len(made) == len(HOLDERS) + 1
    assert main(["certs", "init", str(tmp_path)]) == 1
    assert "renew" in capsys.readouterr().err
    assert main(["certs", "show", str(tmp_path / "trainer")]) == 0
    assert "365 days left" in capsys.readouterr().out
    assert main(["certs", "init", str(tmp_path / "x"), "--host", "ümlaut.de"]) == 1
    assert "DNS name" in capsys.readouterr().err


def test_certificates_are_accepted_by_a_strict_verifier(folder: Path) -> None:
    """The chain holds by RFC 5280, as Python 3.13 and Go want it."""
    context = ssl.create_default_context(cafile=str(folder / "client" / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "etcd" / "tls.crt", folder / "etcd" / "tls.key")
    for name in ("10.0.0.1", "etcd-0.etcd.realloc.svc", ETCD_NAME):
        _shake_hands(context, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(context, server, "10.0.0.2")


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=name)
    far = server.wrap_bio(up, down, server_side=True)
    ends = [near, far]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_tokens_are_kept_as_hashes(tmp_path: Path) -> None:
    """The file never holds a token, is its owner's only, and knows whom each was given to."""
    path = tmp_path / "tokens.json"
    texts = [create_token(path, name, Role.USER) for name in ("ada", "grace")]
    assert not any(text in path.read_text() for text in texts)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = TokenFile(path)
    assert [tokens.caller(text).name for text in texts] == ["ada", "grace"]
    with pytest.raises(Conflict):
        create_token(path, "ada", Role.VIEWER)
    revoke_token(path, "ada")
    assert [token.name for token in load_tokens(path)] == ["grace"]
    with pytest.raises(NotFound):
        revoke_token(path, "ada")


def test_a_token_is_good_until_its_last_day_is_over(tmp_path: Path) -> None:
    """Valid on the day it names, refused on the next."""
    path = tmp_path / "tokens.json"
    text = create_token(path, "ada", Role.USER, date(2026, 3, 31))
    assert TokenFile(path, lambda: date(2026, 3, 31)).caller(text).role is Role.USER
    with pytest.raises(Unauthenticated, match="expired on 2026-03-31"):
        TokenFile(path, lambda: date(2026, 4, 1)).caller(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "key: value"),
        ('{"tokens": [{"name": "a", "role": "trainer", "sha256": ""}]}', "no role of a token"),
        ('{"tokens": [{"name": "a", "role": "king", "sha256": ""}]}', "needs one of"),
        ('{"tokens": [{"name": "a", "role": "user"}]}', "sha256: is missing"),
    ],
)
def test_a_broken_token_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The message says what is wrong; nobody is let in by mistake."""
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        TokenFile(path)
