"""Renders overlays with kustomize, and validates what comes out against Kubernetes' schemas."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.kubernetes.commands import Run, find_kubectl, run
from realloc.core.errors import NotFound

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
OVERLAYS = FOLDER / "overlays"
SMOKE = FOLDER / "smoke"
DOCTOR = FOLDER / "doctor"
NAMESPACE = "realloc"

OLDEST, NEWEST = "1.32", "1.37"
"""Versions of Kubernetes that the manifests are valid for."""

Manifest = Mapping[str, Any]


def overlays() -> tuple[str, ...]:
    """Names of all overlays."""
    return tuple(sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml")))


def overlay_folder(name: str) -> Path:
    """Where an overlay lies.

    Raises:
        NotFound: there is none of this name.
    """
    if name not in overlays():
        raise NotFound(f"there is no overlay {name!r}; there are {', '.join(overlays())}")
    return OVERLAYS / name


def render(folder: Path, run: Run = run) -> str:
    """The manifests of a kustomization as YAML text."""
    return run([find_kubectl(), "kustomize", str(folder)])


def parse(text: str) -> tuple[Manifest, ...]:
    """The objects of a rendered text."""
    return tuple(each for each in yaml.safe_load_all(text) if each)


def is_for_cpus(manifests: Sequence[Manifest]) -> bool:
    """True where the devices of the cluster are no GPUs: its images are built without CUDA."""
    kinds = (
        manifest["data"].get("device_kind")
        for manifest in manifests
        if manifest["kind"] == "ConfigMap"
    )
    return "cpu" in kinds


def problems(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What Kubernetes would refuse: unknown or mistyped fields, missing ones."""
    from kubernetes_validate import ValidationError, validate  # type: ignore[import-untyped] # none

    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        for version in (OLDEST, NEWEST):
            try:
                validate(manifest, version, strict=True)
            except ValidationError as error:
                where = ".".join(map(str, error.path))
                yield f"{name} ({version}): {where}: {error.message}"


def with_images(folder: Path, into: Path, *, registry: str, tag: str, cpu: bool) -> Path:
    """A kustomization on top of another one, with the names and tags of the images just built."""
    base = Path(*[".."] * len(into.relative_to(ROOT).parts)) / folder.relative_to(ROOT)
    images = [
        {
            "name": f"realloc/{target}",
            "newName": image_name(target, registry),
            "newTag": image_tag(target, tag, cpu=cpu),
        }
        for target in TARGETS
    ]
    into.mkdir(parents=True, exist_ok=True)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [str(base)],
        "images": images,
    }
    (into / "kustomization.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return into


TARGETS = ("control", "trainer", "generation")
"""Targets of deploy/docker/Dockerfile."""


def image_name(target: str, registry: str) -> str:
    """Where an image is pushed to; without a registry its local name."""
    return f"{registry.rstrip('/')}/realloc/{target}" if registry else f"realloc/{target}"


def image_tag(target: str, tag: str, *, cpu: bool) -> str:
    """control has no build for an accelerator."""
    return f"{tag}-cpu" if cpu and target != "control" else tag
