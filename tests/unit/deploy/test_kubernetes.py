"""What the rendered manifests say, against the code that they start."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.manifests import (
    DOCTOR,
    OVERLAYS,
    ROOT,
    SMOKE,
    TARGETS,
    overlays,
    parse,
    problems,
    render,
)
from deploy.kubernetes.secrets import CLIENT, ETCD_HOSTS, HOLDERS, TOKENS
from deploy.node.agent import ALIVE
from deploy.node.config import NodeConfig
from deploy.node.shards import shards_of
from realloc.config import ServiceConfig, load
from realloc.cost.hardware import hardware_of
from realloc.plain_data import ConfigError
from realloc.security.roles import ALLOWED, CLIENT_SERVICE
from services.generation.config import GenerationConfig
from services.param_store.config import ParamStoreConfig
from services.plan_search.config import PlanSearchConfig
from services.scheduler.config import SchedulerConfig
from services.trainer.config import TrainerConfig

CONFIGS: Mapping[str, type[ServiceConfig]] = {
    each.service: each
    for each in (
        SchedulerConfig,
        PlanSearchConfig,
        ParamStoreConfig,
        TrainerConfig,
        GenerationConfig,
    )
}
CONTROL = ("scheduler", "plan-search", "param-store")
SHARDS = ("trainer", "generation")
MUST_SAY = {"host", "etcd_endpoints", "tls_dir", "otlp_endpoint", "trace_dir"}
"""Fields whose defaults are those of a single machine: every service's file has them."""

POD_KINDS = ("Deployment", "StatefulSet", "Job")
Object = Mapping[str, Any]


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """All objects of an overlay, and of the jobs."""
    folders = (OVERLAYS / overlay, SMOKE, DOCTOR)
    return tuple(each for folder in folders for each in parse(render(folder)))


@pytest.fixture(params=overlays())
def objects(request) -> tuple[Object, ...]:
    """The objects of each overlay in turn."""
    return rendered(request.param)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    return next(each for each in of_kind(objects, kind) if base_name(each) == name)


def base_name(one: Object) -> str:
    """Without the digest that kustomize appends to generated maps."""
    return re.sub(r"-[0-9a-z]{10}$", "", one["metadata"]["name"])


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]


def containers(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object, Object]]:
    """Workload's name, its pod, and each container."""
    for workload in of_kind(objects, *POD_KINDS):
        pod = pod_of(workload)
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield workload["metadata"]["name"], pod, container


def environment(objects: tuple[Object, ...], container: Object) -> dict[str, str]:
    """Variables of a container, with values of config maps; those of the pod get stand-ins."""
    values = {}
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            name = re.sub(r"-[0-9a-z]{10}$", "", reference["name"])
            values[variable["name"]] = named(objects, "ConfigMap", name)["data"][reference["key"]]
        else:
            values[variable["name"]] = variable.get("value", "0")
    return values


def config_file(objects: tuple[Object, ...], service: str, folder: Path) -> Path:
    """The file that a service is given."""
    path = folder / f"{service}.yaml"
    path.write_text(named(objects, "ConfigMap", "config")["data"][path.name])
    return path


# ---- schemas ----


def test_overlays_are_valid():
    """The oldest and the newest supported Kubernetes accept every field of every object."""
    distinct = {json.dumps(each, sort_keys=True) for name in overlays() for each in rendered(name)}
    assert list(problems([json.loads(text) for text in sorted(distinct)])) == []


def test_an_unknown_field_is_found():
    """Validation is strict: a misspelt field is an error that says where it stands."""
    wrong = json.loads(json.dumps(named(rendered("cpu"), "Deployment", "scheduler")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert any("readinesProbe" in problem for problem in problems([wrong]))


def test_a_cluster_may_only_train(tmp_path):
    """With the component `training-only` shards run the image without vLLM, and no replicas."""
    folder = ROOT / "run" / f"test-{tmp_path.name}"
    folder.mkdir(parents=True)
    content = {
        "resources": ["../../deploy/kubernetes/overlays/gpu-8"],
        "components": ["../../deploy/kubernetes/components/training-only"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    try:
        objects = parse(render(folder))
    finally:
        shutil.rmtree(folder)
    assert list(problems([named(objects, "StatefulSet", "shards")])) == []
    (container,) = pod_of(named(objects, "StatefulSet", "shards"))["containers"]
    assert container["image"].startswith("realloc/trainer")
    assert not [each for each in container["args"] if "generation" in each]


# ---- configuration ----


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


def mount_of(container: Object, volume: str) -> str:
    """Where a volume is mounted."""
    found = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume]
    return found[0]


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


def test_the_cluster_is_as_large_as_the_scheduler_thinks(objects):
    """Pods, GPUs per pod and the hardware's name agree with the scheduler's configuration."""
    cluster = named(objects, "ConfigMap", "cluster")["data"]
    shards = named(objects, "StatefulSet", "shards")
    assert shards["spec"]["replicas"] == int(cluster["num_nodes"])
    limits = pod_of(shards)["containers"][0]["resources"]["limits"]
    if hardware_of(cluster["device_kind"]).name != "cpu":
        assert str(limits["nvidia.com/gpu"]) == cluster["devices_per_node"]
    assert int(cluster["device_memory_bytes"]) > 1 << 30


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


# ---- pods ----


def test_pods_are_confined(objects):
    """No root, no privileges, no writable image, no token of the API; every container has
    requests and a limit of memory."""
    for name, pod, container in containers(objects):
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["serviceAccountName"] != "default", name
        confined = container["securityContext"]
        assert confined["allowPrivilegeEscalation"] is False, name
        assert confined["readOnlyRootFilesystem"] is True, name
        assert confined["capabilities"]["drop"] == ["ALL"], name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", overlays())
def test_only_gpu_shards_may_lock_memory(overlay):
    """IPC_LOCK is given to shards on GPUs and to nobody else."""
    holders = {
        name
        for name, _, container in containers(rendered(overlay))
        if container["securityContext"]["capabilities"].get("add")
    }
    assert holders == ({"shards"} if overlay != "cpu" else set())
    for _, _, container in containers(rendered(overlay)):
        assert container["securityContext"]["capabilities"].get("add", ["IPC_LOCK"]) == ["IPC_LOCK"]


def test_accounts_have_no_rights(objects):
    """There is an account for each workload, without any role."""
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    for name, pod, _ in containers(objects):
        assert pod["serviceAccountName"] in accounts, name
    assert not [each for each in objects if "Role" in each["kind"]]


def test_everything_that_runs_on_is_probed(objects):
    """Startup, readiness and liveness of every container but the job's; ours by gRPC."""
    for name, _, container in containers(tuple(of_kind(objects, "Deployment", "StatefulSet"))):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            found = container[probe]
            if container["image"].startswith("realloc/"):
                ports = {port["containerPort"] for port in container["ports"]}
                assert found["grpc"]["port"] in ports, name
            else:
                assert found.keys() & {"httpGet", "tcpSocket"}, name
    node = named(objects, "StatefulSet", "shards")
    assert pod_of(node)["containers"][0]["livenessProbe"]["grpc"]["service"] == ALIVE


def test_control_survives_a_node(objects):
    """Each control service has two or three replicas, spread over nodes, and a budget; members
    of etcd and shards of a node never share a machine."""
    budgets = {each["metadata"]["name"] for each in of_kind(objects, "PodDisruptionBudget")}
    for name in CONTROL:
        workload = named(objects, "Deployment", name)
        assert workload["spec"]["replicas"] in (2, 3)
        (spread,) = pod_of(workload)["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        assert name in budgets
    assert "etcd" in budgets
    assert named(objects, "StatefulSet", "etcd")["spec"]["replicas"] == 3
    for name in ("etcd", "shards"):
        pod = pod_of(named(objects, "StatefulSet", name))
        (rule,) = pod["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        assert rule["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}


def test_images_exist(objects):
    """Our images are targets of the Dockerfile; those of others have a version."""
    for name, _, container in containers(objects):
        image = container["image"]
        own = re.fullmatch(r"realloc/([a-z]+)(:[\w.-]+)?", image)
        if own:
            assert own[1] in TARGETS, name
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image), name


def test_what_pods_mount_exists(objects):
    """Config maps and claims are among the objects; secrets are those that the deployment
    makes."""
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    for workload in of_kind(objects, *POD_KINDS):
        pod = pod_of(workload)
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in {*HOLDERS, TOKENS, CLIENT}
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        own = {volume["name"] for volume in pod["volumes"]}
        own |= {
            each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())
        }
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert {each["name"] for each in container["volumeMounts"]} <= own


# ---- who may talk to whom ----

Flow = tuple[str, str, int]
"""From one workload to another, at a port."""

PROBED_PORTS = (2379, 2380, 2381, 3000, 3200, 4317, 7000, 7001, 7100, 7299, 7300, 8889, 9090, 29500)
"""A port of each kind, and some that nobody should reach."""


def expected_flows(config: NodeConfig) -> set[Flow]:
    """What the services do: `realloc.security.roles` says who calls whom."""
    parties = {"scheduler": "scheduler", "plan_search": "plan-search", "param_store": "param-store"}
    workload = parties | dict.fromkeys(SHARDS, "shards") | {"operator": "doctor"}
    flows: set[Flow] = {(each, "etcd", 2379) for each in workload.values()}
    flows |= {("etcd", "etcd", 2380), ("smoke", "scheduler", 7000)}
    flows |= {(each, "collector", 4317) for each in (*CONTROL, "shards")}
    flows |= {("collector", "tempo", 4317), ("grafana", "tempo", 3200)}
    flows |= {("prometheus", "collector", 8889), ("prometheus", "etcd", 2381)}
    flows |= {("grafana", "prometheus", 9090)}
    for service, roles in ALLOWED.items():
        kind = service.split(".")[2]
        servers = {"shard": SHARDS, "diagnostics": (*parties, *SHARDS)}.get(kind, (kind,))
        for caller in roles if service != CLIENT_SERVICE else ():
            for server in servers:
                ports = (7100, 7299) if server in SHARDS else (7000,)
                flows |= {(workload[str(caller)], workload[server], port) for port in ports}
    # Between shards NCCL, gloo and torch.distributed choose the ports.
    flows |= {("shards", "shards", port) for port in PROBED_PORTS}
    return flows


def test_policies_allow_what_is_needed_and_nothing_else(objects):
    """Between any two workloads exactly the ports are open that the services use."""
    first = NodeConfig(devices_per_node=8, trainer_config="t", generation_config="g")
    ports = [int(each.program.command[7].partition("=")[2]) for each in shards_of(first)]
    assert min(ports) >= 7100
    assert max(ports) <= 7299
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(objects, *POD_KINDS)
    }
    policies = of_kind(objects, "NetworkPolicy")
    allowed = {
        (source, target, port)
        for source in labels
        for target in labels
        for port in PROBED_PORTS
        if is_open(policies, "Egress", labels[source], labels[target], port)
        and is_open(policies, "Ingress", labels[target], labels[source], port)
    }
    assert allowed == expected_flows(first)


def is_open(policies: list[Object], direction: str, own: Object, other: Object, port: int) -> bool:
    """What Kubernetes decides for one end: some policy that selects it allows the other end."""
    selecting = [
        each["spec"]
        for each in policies
        if direction in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], own)
    ]
    if not selecting:
        return True
    side = "from" if direction == "Ingress" else "to"
    return any(
        any(is_peer(peer, other) for peer in rule.get(side, [{}]))
        and ("ports" not in rule or any(covers(each, port) for each in rule["ports"]))
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def is_peer(peer: Object, labels: Object) -> bool:
    """All pods here are of the namespace realloc."""
    namespaces = peer.get("namespaceSelector", {}).get("matchLabels", {})
    if namespaces.get("kubernetes.io/metadata.name", "realloc") != "realloc":
        return False
    return selects(peer.get("podSelector", {}), labels)


def covers(ports: Object, port: int) -> bool:
    if ports.get("protocol", "TCP") != "TCP":
        return False
    return bool(ports["port"] <= port <= ports.get("endPort", ports["port"]))


def selects(selector: Object, labels: Object) -> bool:
    """Kubernetes' label selectors, as far as the manifests use them."""
    exact = selector.get("matchLabels", {})
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in exact.items())
