"""Which etcd is used, which is refused, and what is said where there is none."""

from pathlib import Path

import pytest

from deploy.local.etcd_binary import EtcdNotFound, fetch_etcd, find_etcd, refusal


def fake(path: Path, version: str) -> Path:
    """A program that says that it is an etcd of a version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3.4.22", "3.4.23", "3.5.3", "3.5.16", "3.6.0", "3.5.10-rc.1"])
def test_versions_that_keep_their_data_are_used(version: str) -> None:
    """Versions without a known loss of data pass."""
    assert refusal(version) is None


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.4.21", "3.3.25", "2.3.8"])
def test_versions_that_lose_data_are_refused(tmp_path: Path, version: str) -> None:
    """Versions that can lose data are refused with the version and the reason."""
    binary = fake(tmp_path / "etcd", version)
    with pytest.raises(EtcdNotFound, match=f"{binary}: etcd {version} .*REALLOC_ETCD"):
        find_etcd({"REALLOC_ETCD": str(binary)}, cache=tmp_path / "cache")


def test_the_named_one_comes_before_the_path_and_the_cache(tmp_path: Path) -> None:
    """$REALLOC_ETCD, then the PATH, then the fetched one."""
    named = fake(tmp_path / "named" / "etcd", "3.4.23")
    on_path = fake(tmp_path / "bin" / "etcd", "3.4.23")
    fetched = fake(tmp_path / "cache" / "usr" / "bin" / "etcd", "3.4.23")
    cache = tmp_path / "cache"
    environment = {"REALLOC_ETCD": str(named), "PATH": str(on_path.parent)}
    assert find_etcd(environment, cache=cache) == named
    assert find_etcd({"PATH": str(on_path.parent)}, cache=cache) == on_path
    assert find_etcd({"PATH": ""}, cache=cache) == fetched


def test_a_bad_one_on_the_path_is_passed_over(tmp_path: Path) -> None:
    """An etcd on the PATH that loses data does not hide the fetched one."""
    on_path = fake(tmp_path / "bin" / "etcd", "3.5.1")
    fetched = fake(tmp_path / "cache" / "usr" / "bin" / "etcd", "3.4.23")
    assert find_etcd({"PATH": str(on_path.parent)}, cache=tmp_path / "cache") == fetched


def test_a_bad_one_that_was_named_is_an_error(tmp_path: Path) -> None:
    """What the user named is used or refused, never replaced by another."""
    fetched = fake(tmp_path / "cache" / "usr" / "bin" / "etcd", "3.4.23")
    for named, reason in ((tmp_path / "none", "does not run"), (Path("/bin/true"), "not etcd")):
        with pytest.raises(EtcdNotFound, match=reason):
            find_etcd({"REALLOC_ETCD": str(named)}, cache=fetched.parents[2])


def test_without_apt_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without apt-get nothing is tried, and the message says how to go on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdNotFound, match=r"without apt-get\. Install etcd .* REALLOC_ETCD"):
        fetch_etcd(cache=tmp_path / "cache")


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt-get complains about is passed on; nothing is left behind."""
    for tool in ("apt-get", "dpkg-deb"):
        script = tmp_path / "bin" / tool
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(EtcdNotFound, match=r"apt-get .*update.* failed: E: no network"):
        fetch_etcd(cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
