"""The rendered manifests are valid, whole, and as the cluster should be."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from deploy.kubernetes.manifests import (
    ROOT,
    TARGETS,
    overlays,
    parse,
    problems,
    render,
)
from deploy.kubernetes.secrets import CLIENT, HOLDERS, TOKENS
from deploy.node.agent import ALIVE
from realloc.cost.hardware import hardware_of
from tests.unit.deploy.manifest_objects import (
    CONTROL,
    POD_KINDS,
    containers,
    named,
    of_kind,
    pod_of,
    rendered,
)


def test_overlays_are_valid():
    """The oldest and the newest supported Kubernetes accept every field of every object."""
    distinct = {json.dumps(each, sort_keys=True) for name in overlays() for each in rendered(name)}
    assert list(problems([json.loads(text) for text in sorted(distinct)])) == []


def test_an_unknown_field_is_found():
    """Validation is strict: a misspelt field is an error that says where it stands."""
    wrong = json.loads(json.dumps(named(rendered("cpu"), "Deployment", "scheduler")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert any("readinesProbe" in problem for problem in problems([wrong]))


def test_a_cluster_may_only_train():
    """With the component `training-only` shards run the image without vLLM, and no replicas."""
    content = {
        "resources": ["../../deploy/kubernetes/overlays/gpu-8"],
        "components": ["../../deploy/kubernetes/components/training-only"],
    }
    (ROOT / "run").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / "run") as folder:
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(content))
        objects = parse(render(Path(folder)))
    assert list(problems([named(objects, "StatefulSet", "shards")])) == []
    (container,) = pod_of(named(objects, "StatefulSet", "shards"))["containers"]
    assert container["image"].startswith("realloc/trainer")
    assert not [each for each in container["args"] if "generation" in each]


def test_the_cluster_is_as_large_as_the_scheduler_thinks(objects):
    """Pods, GPUs per pod and the hardware's name agree with the scheduler's configuration."""
    cluster = named(objects, "ConfigMap", "cluster")["data"]
    shards = named(objects, "StatefulSet", "shards")
    assert shards["spec"]["replicas"] == int(cluster["num_nodes"])
    limits = pod_of(shards)["containers"][0]["resources"]["limits"]
    if hardware_of(cluster["device_kind"]).name != "cpu":
        assert str(limits["nvidia.com/gpu"]) == cluster["devices_per_node"]
    assert int(cluster["device_memory_bytes"]) > 1 << 30


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
