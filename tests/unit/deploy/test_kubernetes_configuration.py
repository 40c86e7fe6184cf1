"""What the manifests give to services, against what these read."""

from dataclasses import MISSING, fields

import pytest
import yaml

from deploy.kubernetes.secrets import ETCD_HOSTS
from deploy.node.config import NodeConfig
from realloc.config import load
from realloc.plain_data import ConfigError
from services.scheduler.config import SchedulerConfig
from tests.unit.deploy.manifest_objects import (
    CONFIGS,
    CONTROL,
    SHARDS,
    config_file,
    environment,
    mount_of,
    named,
    pod_of,
    rendered,
)

MUST_SAY = {"host", "etcd_endpoints", "tls_dir", "otlp_endpoint", "trace_dir"}
"""Fields whose defaults are those of a single machine: every service's file has them."""


@pytest.mark.parametrize("service", CONFIGS)
def test_config_files_are_those_of_the_services(objects, service, tmp_path):
    """Each key is a field of the service's configuration, with a value of its type; the fields
    that only fit a single machine by default are given."""
    path = config_file(objects, service, tmp_path)
    load(CONFIGS[service], str(path), environ={"REALLOC_ADVERTISE_HOST": "10.0.0.1"})
    assert yaml.safe_load(path.read_text()).keys() >= MUST_SAY


def test_a_wrong_key_is_found(tmp_path):
    """A key that the service does not know fails."""
    path = config_file(rendered("cpu"), "scheduler", tmp_path)
    path.write_text(path.read_text() + "nodes: 3\n")
    with pytest.raises(ConfigError, match="nodes: is unknown"):
        load(SchedulerConfig, str(path), environ={})


def test_no_required_field_is_left_out():
    """Services could get a field without default: then the files must have it."""
    for config_class in CONFIGS.values():
        required = [each.name for each in fields(config_class) if each.default is MISSING]
        assert required == []


@pytest.mark.parametrize("name", CONTROL)
def test_environment_ports_and_mounts_of_control_services_agree(objects, name, tmp_path):
    """What a control pod is given is what its service reads: variables, ports, folders."""
    service = name.replace("-", "_")
    pod = pod_of(named(objects, "Deployment", name))
    (container,) = pod["containers"]
    assert container["args"][0] == f"services.{service}"
    values = environment(objects, container)
    known = {f"REALLOC_{field.name.upper()}" for field in fields(CONFIGS[service])}
    assert values.keys() <= known
    path = config_file(objects, service, tmp_path)
    config = load(CONFIGS[service], str(path), values | {"REALLOC_NAME": "pod-1"})
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.port, "health": config.health_port}
    assert container["args"][2] == mount_of(container, "config") + f"/{service}.yaml"
    assert config.tls_dir == mount_of(container, "tls")
    assert config.trace_dir.startswith(mount_of(container, "shared"))
    assert config.drain_seconds < pod["terminationGracePeriodSeconds"]


def test_shards_are_given_what_the_supervisor_and_they_read(objects, tmp_path):
    """The node's arguments and variables are fields of its configuration; files and folders of
    both kinds of shard are where they say."""
    pod = pod_of(named(objects, "StatefulSet", "shards"))
    (container,) = pod["containers"]
    values = environment(objects, container)
    arguments = dict(each.removeprefix("--").split("=") for each in container["args"][1:])
    arguments = {key.replace("-", "_"): value for key, value in arguments.items()}
    known = {f"REALLOC_{field.name.upper()}" for field in fields(NodeConfig)}
    assert values.keys() - known <= {"REALLOC_ADVERTISE_HOST"}
    node = load(NodeConfig, None, values, arguments)
    assert node.node == 0
    assert {"name": "health", "containerPort": node.health_port} in container["ports"]
    for kind in SHARDS:
        path = config_file(objects, kind, tmp_path)
        config = load(CONFIGS[kind], str(path), {"REALLOC_ADVERTISE_HOST": "10.0.0.1"})
        assert config.tls_dir == mount_of(container, f"tls-{kind}")
        assert arguments[f"{kind}_config"] == f"{mount_of(container, 'config')}/{kind}.yaml"
        assert config.drain_seconds < pod["terminationGracePeriodSeconds"]
    assert mount_of(container, "shm") == "/dev/shm"
    memory = next(each for each in pod["volumes"] if each["name"] == "shm")["emptyDir"]
    assert memory["medium"] == "Memory"


def test_members_of_etcd_are_those_that_services_look_for(objects, tmp_path):
    """All files name the same endpoints: one per member of the set, under its service, and the
    certificates are made for these names."""
    etcd = named(objects, "StatefulSet", "etcd")
    hosts = [f"etcd-{i}.etcd.realloc.svc" for i in range(etcd["spec"]["replicas"])]
    for service, config_class in CONFIGS.items():
        path = config_file(objects, service, tmp_path)
        config = load(config_class, str(path), environ={})
        assert config.etcd_endpoints == tuple(f"{host}:2379" for host in hosts)
    assert set(hosts) <= set(ETCD_HOSTS)
    initial = next(
        each
        for each in pod_of(etcd)["containers"][0]["args"]
        if each.startswith("--initial-cluster=")
    )
    assert [part.partition("=")[2] for part in initial.partition("=")[2].split(",")] == [
        f"https://{host}:2380" for host in hosts
    ]
    assert etcd["spec"]["serviceName"] == named(objects, "Service", "etcd")["metadata"]["name"]
