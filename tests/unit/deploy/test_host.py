"""What a host of a hand-made cluster starts: where, under which names, with which certificates."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from deploy.local.host import HostSettings, etcd_programs, main, service_stages
from realloc.config import ServiceConfig, from_command_line


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    (tmp_path / "certs" / "trainer").mkdir(parents=True)
    (tmp_path / "tokens.json").touch()
    return HostSettings(
        hosts=("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"),
        index=1,
        devices=2,
        certs=tmp_path / "certs",
        tokens=tmp_path / "tokens.json",
        run_dir=tmp_path / "run",
    )


def configs(settings: HostSettings) -> Mapping[str, ServiceConfig]:
    """The configuration of each process of a host, as the service itself reads it."""
    found = {}
    for program in (each for stage in service_stages(settings) for each in stage):
        _, _, module, *arguments = program.command
        kind = module.removeprefix("services.")
        classes = vars(import_module(f"{module}.config"))
        config_class = classes["".join(word.title() for word in kind.split("_")) + "Config"]
        config = from_command_line(config_class, arguments, {})
        found[config.instance] = config
    return found


def test_a_host_of_the_first_three_runs_everything(settings: HostSettings) -> None:
    """Control services under names of their own, a trainer and a replica for each device."""
    found = configs(settings)
    shards = {f"{kind}-{device}" for kind in ("trainer", "generation") for device in (2, 3)}
    assert set(found) == {"scheduler-1", "plan_search-1", "param_store-1"} | shards
    assert {(found[name].device, found[name].node) for name in shards} == {(2, 1), (3, 1)}
    assert (found["scheduler-1"].num_nodes, found["scheduler-1"].devices_per_node) == (4, 2)


def test_a_host_beyond_the_third_runs_shards_only(settings: HostSettings) -> None:
    """Neither etcd nor control services; it still knows where etcd is."""
    last = replace(settings, index=3)
    assert not etcd_programs(last, Path("etcd"))
    found = configs(last)
    assert set(found) == {"trainer-6", "trainer-7", "generation-6", "generation-7"}
    assert {config.etcd_endpoints for config in found.values()} == {
        ("10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379")
    }


def test_each_process_gets_the_certificate_of_its_role_and_the_hosts_address(
    settings: HostSettings,
) -> None:
    """No process shares a key with another kind, and none listens anywhere else."""
    for config in configs(settings).values():
        assert config.tls_dir == str(settings.certs / config.service)
        assert (config.host, config.reachable_host) == ("10.0.0.2", "10.0.0.2")


def test_members_of_etcd_know_the_others_once(settings: HostSettings) -> None:
    """Each of the three members names all three, itself included, over TLS."""
    (program,) = etcd_programs(settings, Path("etcd"))
    options = dict(word.removeprefix("--").split("=", 1) for word in program.command[1:])
    urls = [f"etcd-{index}=https://10.0.0.{index + 1}:2380" for index in range(3)]
    assert sorted(options["initial-cluster"].split(",")) == urls
    assert options["listen-client-urls"] == "https://10.0.0.2:2379"
    assert options["client-cert-auth"] == options["peer-client-cert-auth"] == "true"


def test_two_hosts_have_one_member(settings: HostSettings) -> None:
    """Two members would both be needed for a majority."""
    two = replace(settings, hosts=("10.0.0.1", "10.0.0.2"), index=0)
    assert len(two.endpoints) == 1


def test_wrong_arguments_are_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every problem, before anything starts."""
    words = ["--hosts", "10.0.0.1,10.0.0.1", "--index", "2", "--devices", "0"]
    words += ["--certs", str(tmp_path / "c"), "--tokens", str(tmp_path / "t")]
    assert main(words) == 2
    said = capsys.readouterr().err
    for option in ("--hosts", "--index", "--devices", "--certs", "--tokens"):
        assert f"host: {option}: " in said
