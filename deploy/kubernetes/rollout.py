"""From a checkout to a cluster that has run a job, step by step; and back."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.kubernetes.commands import Run, find_builder, find_kubectl, run
from deploy.kubernetes.manifests import (
    NAMESPACE,
    ROOT,
    SMOKE,
    TARGETS,
    image_name,
    image_tag,
    is_for_cpus,
    overlay_folder,
    parse,
    render,
    with_images,
)
from deploy.kubernetes.secrets import ensure_secrets

DOCKERFILE = "deploy/docker/Dockerfile"
IGNORED = "deploy/docker/Dockerfile.dockerignore"

BUILD_SECONDS = 7200.0
READY_SECONDS = 1800.0
"""Longest wait for the pods: nodes pull gigabytes first."""
SMOKE_SECONDS = 1800.0

WORKLOADS = ("statefulset/etcd", "statefulset/shards", "deployment/scheduler")
KEPT = "the namespace, its secrets and its volume claims"
REMOVED = (
    "deployments,statefulsets,jobs,services,configmaps,networkpolicies,poddisruptionbudgets,"
    "serviceaccounts"
)
SELECTOR = "--selector=app.kubernetes.io/part-of=realloc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator said."""

    overlay: str
    registry: str = ""
    """Prefix of the images' names; images are pushed only where there is one."""
    tag: str = "dev"
    context: str = ""
    """Context of kubectl; empty takes the current one."""
    build: bool = True
    smoke: bool = True
    run_dir: Path = ROOT / "run" / "kubernetes"
    """Gets certificates, the operator's token and the kustomization with the images' tags."""


class Rollout:
    """The steps, each of which may be repeated: what is there already stays."""

    def __init__(self, options: Options, say: Callable[[str], None], execute: Run = run) -> None:
        self._options = options
        self._say = say
        self._run = execute
        self._folder = overlay_folder(options.overlay)
        self._cpu = is_for_cpus(parse(render(self._folder)))

    def rendered(self) -> str:
        """The manifests, with the images that `up` would build."""
        return render(self._tagged(self._folder, "overlay"))

    def up(self) -> None:
        """Build, apply, wait, and run a job.

        Raises:
            NotFound: a tool is missing.
            Unavailable: a step failed; what it did stays, and `up` goes on from there.
        """
        self._say(f"asking the cluster of context {self._options.context or '(current)'}")
        self._kubectl("version", "--output=yaml")
        if self._options.build:
            self._build()
        self._say("applying the namespace and secrets")
        self._kubectl("apply", "-f", str(self._folder.parents[1] / "base" / "namespace.yaml"))
        ensure_secrets(self._in_namespace, self._run, self._options.run_dir)
        self._say(f"applying overlay {self._options.overlay}")
        self._kubectl("apply", "-k", str(self._tagged(self._folder, "overlay")))
        self._wait()
        if self._options.smoke:
            self._smoke()
        self._print_endpoints()

    def down(self) -> None:
        """Remove everything that runs; data, secrets and the namespace stay."""
        self._say("removing the smoke job and the workloads")
        self._in_namespace("delete", REMOVED, SELECTOR, "--ignore-not-found", timeout_seconds=600.0)
        self._say(f"kept {KEPT}; to remove these too: kubectl delete namespace {NAMESPACE}")

    def _build(self) -> None:
        builder = find_builder()
        for target in TARGETS:
            tag = image_tag(target, self._options.tag, cpu=self._cpu)
            image = f"{image_name(target, self._options.registry)}:{tag}"
            self._say(f"building {image}")
            self._run(
                build_command(builder, target, image, cpu=self._cpu),
                timeout_seconds=BUILD_SECONDS,
            )
            if self._options.registry:
                self._say(f"pushing {image}")
                self._run([builder, "push", image], timeout_seconds=BUILD_SECONDS)

    def _wait(self) -> None:
        for workload in (*WORKLOADS, "deployment/plan-search", "deployment/param-store"):
            self._say(f"waiting for {workload}")
            if workload == "statefulset/shards":
                # A set whose pods are replaced by hand (OnDelete) has no rollout to ask for.
                self._in_namespace(
                    "wait",
                    "pod",
                    "--selector=app.kubernetes.io/name=shards",
                    "--for=condition=Ready",
                    f"--timeout={READY_SECONDS:.0f}s",
                    timeout_seconds=READY_SECONDS + 60.0,
                )
                continue
            self._in_namespace(
                "rollout",
                "status",
                workload,
                f"--timeout={READY_SECONDS:.0f}s",
                timeout_seconds=READY_SECONDS + 60.0,
            )

    def _smoke(self) -> None:
        self._say("running the smoke job")
        self._in_namespace("delete", "job", "smoke", "--ignore-not-found")
        self._kubectl("apply", "-k", str(self._tagged(SMOKE, "smoke")))
        try:
            self._in_namespace(
                "wait",
                "job/smoke",
                "--for=condition=Complete",
                f"--timeout={SMOKE_SECONDS:.0f}s",
                timeout_seconds=SMOKE_SECONDS + 60.0,
            )
        finally:
            self._say(self._in_namespace("logs", "job/smoke", "--all-containers", "--tail=30"))

    def _tagged(self, folder: Path, name: str) -> Path:
        return with_images(
            folder,
            self._options.run_dir / name,
            registry=self._options.registry,
            tag=self._options.tag,
            cpu=self._cpu,
        )

    def _print_endpoints(self) -> None:
        run_dir = self._options.run_dir.relative_to(ROOT)
        self._say("ready")
        self._say(f"inside the cluster: scheduler.{NAMESPACE}.svc:7000, for pods with the label")
        self._say("  realloc.dev/client=true")
        self._say("from here:")
        self._say(f"  kubectl -n {NAMESPACE} port-forward service/scheduler 7000:7000 &")
        self._say(
            f"  export REALLOC_ADDRESS=127.0.0.1:7000 REALLOC_CA={run_dir}/certs/client/ca.crt"
        )
        self._say(f"  export REALLOC_TOKEN_FILE={run_dir}/token")
        self._say("  realloc jobs list")

    def _kubectl(self, *arguments: str, timeout_seconds: float = 120.0) -> str:
        context = ["--context", self._options.context] if self._options.context else []
        return self._run([find_kubectl(), *context, *arguments], timeout_seconds=timeout_seconds)

    def _in_namespace(self, *arguments: str, timeout_seconds: float = 120.0) -> str:
        return self._kubectl("--namespace", NAMESPACE, *arguments, timeout_seconds=timeout_seconds)


def build_command(builder: str, target: str, image: str, *, cpu: bool) -> Sequence[str]:
    """The command that builds an image; docker, podman and buildah take nearly the same."""
    # docker finds the file by its name.
    ignore = [] if builder == "docker" else [f"--ignorefile={IGNORED}"]
    return [
        builder,
        "build",
        f"--file={DOCKERFILE}",
        *ignore,
        f"--target={target}",
        f"--tag={image}",
        f"--build-arg=ACCELERATOR={'cpu' if cpu else 'gpu'}",
        str(ROOT),
    ]


def commit() -> str:
    """The checkout's commit as a tag of images, ``-dirty`` where it was changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        print("kubernetes: no git checkout; images get the tag dev", file=sys.stderr)
        return "dev"
