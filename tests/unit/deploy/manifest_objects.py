"""The objects of the rendered manifests, and what tests read from them."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from deploy.kubernetes.manifests import (
    DOCTOR,
    OVERLAYS,
    SMOKE,
    parse,
    render,
)
from realloc.config import ServiceConfig
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
POD_KINDS = ("Deployment", "StatefulSet", "Job")
Object = Mapping[str, Any]


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """All objects of an overlay, and of the jobs."""
    folders = (OVERLAYS / overlay, SMOKE, DOCTOR)
    return tuple(each for folder in folders for each in parse(render(folder)))


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


def mount_of(container: Object, volume: str) -> str:
    """Where a volume is mounted."""
    found = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume]
    return found[0]
