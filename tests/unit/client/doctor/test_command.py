"""What the doctor's command refuses before it examines anybody."""

from pathlib import Path

import pytest

from realloc.client.cli import main


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--message-mib", "0"], "--message-mib: is 0; give up to 1024"),
        (["--timeout", "-1"], "--timeout: is -1 and must be positive"),
        (["--links", "/nowhere/links.json"], "--links: /nowhere cannot be written"),
        (["--links", "links.json", "--no-links"], "--links: needs what --no-links leaves out"),
    ],
)
def test_bad_options_are_refused_at_once(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after minutes of measuring."""
    assert main(["doctor", "--etcd", "127.0.0.1:1", *options]) == 1
    assert complaint in capsys.readouterr().err


def test_without_a_cluster_the_doctor_says_whom_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--etcd, the variable, or a folder with an endpoints file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REALLOC_ETCD_ENDPOINTS", raising=False)
    assert main(["doctor"]) == 1
    assert "--etcd: is not given, REALLOC_ETCD_ENDPOINTS is not set" in capsys.readouterr().err
