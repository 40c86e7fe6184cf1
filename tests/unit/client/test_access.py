"""What a client takes from the endpoints file of its working folder."""

import json
from pathlib import Path

import pytest

from realloc.client.access import security_towards
from realloc.client.client import default_address
from realloc.core.errors import InvalidInput
from realloc.security.certificates import make_certificates

SCHEDULER = "10.0.0.1:7000"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a cluster's endpoints, and an environment that says nothing."""
    for name in ("REALLOC_ADDRESS", "REALLOC_CA", "REALLOC_TOKEN", "REALLOC_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    make_certificates(tmp_path / "certs")
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "run").mkdir()
    endpoints = {
        "scheduler": SCHEDULER,
        "authority": str(tmp_path / "certs" / "client" / "ca.crt"),
        "token_file": str(tmp_path / "token"),
    }
    (tmp_path / "run" / "endpoints.json").write_text(json.dumps(endpoints))
    return tmp_path


def test_the_endpoints_file_is_enough(folder: Path) -> None:
    """Address, authority and token come from it; nothing has to be set."""
    assert default_address() == SCHEDULER
    security = security_towards(SCHEDULER, "", "")
    assert security is not None
    assert security.files().authority == (folder / "certs" / "client" / "ca.crt").read_bytes()


def test_its_authority_is_not_for_other_clusters(folder: Path) -> None:
    """A token never goes to an address that the file does not name."""
    with pytest.raises(InvalidInput, match="REALLOC_CA"):
        security_towards("10.0.0.2:7000", "", "")


def test_a_lost_token_file_is_named(folder: Path) -> None:
    """Not a refusal by the scheduler, later."""
    (folder / "token").unlink()
    with pytest.raises(InvalidInput, match="token cannot be read"):
        security_towards(SCHEDULER, "", "")


def test_without_a_file_the_client_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REALLOC_ADDRESS, or a cluster."""
    monkeypatch.delenv("REALLOC_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"REALLOC_ADDRESS: is not set .* `make run`"):
        default_address()
