"""The way from a checkout to a running cluster: which tools are asked for what, in which order."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.kubernetes import rollout
from deploy.kubernetes.commands import run
from deploy.kubernetes.manifests import ROOT, parse, render, with_images
from deploy.kubernetes.rollout import Options, Rollout, build_command
from deploy.kubernetes.secrets import CLIENT, HOLDERS, TOKENS, files_of, make_credentials
from realloc.core.errors import NotFound, Unavailable
from realloc.security.certificates import read_certificate
from realloc.security.tls import ChannelSecurity, peer_security


class ToyTools:
    """Stands in for kubectl and the builder: notes what it is told, and answers nothing."""

    def __init__(self, secrets: Sequence[str] = (), failing: str = "") -> None:
        self.said: list[str] = []
        self._secrets = secrets
        self._failing = failing

    def __call__(
        self, command: Sequence[str], *, stdin: str | None = None, timeout_seconds: float = 0.0
    ) -> str:
        text = " ".join(command[1:])
        self.said.append(text)
        if self._failing and self._failing in text:
            raise Unavailable(f"`{text}` failed with status 1")
        if "get secrets" in text:
            items = [{"metadata": {"name": name}} for name in self._secrets]
            return json.dumps({"items": items})
        return "realloc_token\n"

    def order(self, *parts: str) -> list[int]:
        """Where the first command that contains each part stands."""
        return [next(i for i, text in enumerate(self.said) if part in text) for part in parts]


@pytest.fixture
def options(tmp_path, monkeypatch) -> Options:
    """A deployment whose generated files lie in the repository's run folder of a test."""
    monkeypatch.setattr(rollout, "find_builder", lambda: "docker")
    folder = ROOT / "run" / f"test-kubernetes-{tmp_path.name}"
    yield Options(overlay="cpu", registry="reg.example", tag="v1", context="lab", run_dir=folder)
    run(["rm", "-rf", str(folder)])


def test_a_deployment_goes_step_by_step(options):
    """Images are built and pushed, then the namespace, secrets and manifests applied, then all
    workloads waited for, then the smoke job is run; always in the context that was named."""
    tools = ToyTools()
    Rollout(options, lambda text: None, tools).up()
    order = tools.order(
        "version",
        "build --file=deploy/docker/Dockerfile --target=control --tag=reg.example/",
        "push reg.example/realloc/control:v1",
        "push reg.example/realloc/generation:v1-cpu",
        "apply -f",
        "get secrets",
        "create secret generic tls-etcd",
        f"apply -k {options.run_dir}/overlay",
        "rollout status statefulset/etcd",
        "wait pod --selector=app.kubernetes.io/name=shards",
        "rollout status deployment/param-store",
        f"apply -k {options.run_dir}/smoke",
        "wait job/smoke",
        "logs job/smoke",
    )
    assert order == sorted(order)
    cluster = [text for text in tools.said if not text.startswith(("build", "push", "-m"))]
    assert all(text.startswith("--context lab") for text in cluster)


def test_secrets_that_are_there_stay(options):
    """A cluster with certificates of its own keeps them: nothing is made."""
    tools = ToyTools(secrets=[*HOLDERS, TOKENS, CLIENT])
    Rollout(options, lambda text: None, tools).up()
    assert not [text for text in tools.said if "certs" in text or "create secret" in text]


def test_a_failed_smoke_job_fails_the_deployment_and_shows_its_log(options):
    """The error comes through, after the job's output was fetched."""
    tools = ToyTools(failing="wait job/smoke")
    with pytest.raises(Unavailable, match="wait job/smoke"):
        Rollout(options, lambda text: None, tools).up()
    assert "logs job/smoke" in tools.said[-1]


def test_a_cluster_that_does_not_answer_costs_no_build(options):
    """The cluster is asked first."""
    tools = ToyTools(failing="version")
    with pytest.raises(Unavailable):
        Rollout(options, lambda text: None, tools).up()
    assert len(tools.said) == 1


def test_removal_keeps_data_and_secrets(options):
    """Claims, secrets and the namespace are not deleted."""
    tools = ToyTools()
    Rollout(options, lambda text: None, tools).down()
    (text,) = tools.said
    assert "delete deployments,statefulsets," in text
    for kept in ("secret", "claim", "namespace,", "pvc"):
        assert kept not in text


def test_an_unknown_overlay_is_named(options):
    """The error lists those that exist."""
    with pytest.raises(NotFound, match="cpu, gpu-128, gpu-8"):
        Rollout(Options(overlay="gpu-9"), print)


def test_only_clusters_without_gpus_get_images_without_cuda(options):
    """What is built follows from the devices of the overlay, not from its name."""
    for overlay, tag in (("cpu", "v1-cpu"), ("gpu-128", "v1")):
        tools = ToyTools()
        changed = replace(options, overlay=overlay)
        Rollout(changed, lambda text: None, tools).up()
        assert any(f"--tag=reg.example/realloc/generation:{tag} " in text for text in tools.said)


def test_podman_and_buildah_are_told_what_to_ignore():
    """docker finds the file by itself; the others would send the whole checkout."""
    for builder in ("podman", "buildah"):
        command = build_command(builder, "control", "realloc/control:v1", cpu=False)
        (ignored,) = [word for word in command if word.startswith("--ignorefile=")]
        assert (ROOT / ignored.partition("=")[2]).exists()


def test_rendered_images_are_those_that_were_built(options):
    """The generated kustomization names registry, tag and build of each image."""
    folder = with_images(
        ROOT / "deploy/kubernetes/overlays/cpu",
        options.run_dir / "overlay",
        registry="reg.example",
        tag="v1",
        cpu=True,
    )
    images = {
        container["image"]
        for each in parse(render(folder))
        if each["kind"] in ("Deployment", "StatefulSet")
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert images >= {"reg.example/realloc/control:v1", "reg.example/realloc/generation:v1-cpu"}
    assert "--tag=reg.example/realloc/generation:v1-cpu" in build_command(
        "docker", "generation", "reg.example/realloc/generation:v1-cpu", cpu=True
    )


def test_credentials_are_what_pods_need(tmp_path):
    """Made by the real commands: each secret's files are there, etcd's certificate has the names
    of all members, services can use theirs, and the token's file is nobody else's."""
    make_credentials(run, tmp_path)
    make_credentials(run, tmp_path)  # a second time keeps what is there
    for name in (*HOLDERS, TOKENS, CLIENT):
        assert all(path.exists() for path in files_of(name, tmp_path)), name
    names = read_certificate(tmp_path / "certs" / "etcd" / "tls.crt").names
    assert {f"etcd-{member}.etcd.realloc.svc" for member in range(3)} <= set(names)
    for holder in set(HOLDERS.values()) - {"etcd"}:
        assert isinstance(peer_security(str(tmp_path / "certs" / holder)), ChannelSecurity)
    token = tmp_path / "token"
    assert token.read_text().startswith("realloc_")
    assert token.stat().st_mode & 0o077 == 0
    assert len(json.loads((tmp_path / "tokens.json").read_text())["tokens"]) == 1


def test_a_command_that_fails_or_is_missing_is_named(tmp_path: Path):
    """Errors say which command it was."""
    with pytest.raises(Unavailable, match=r"`false` failed with status 1"):
        run(["false"])
    with pytest.raises(NotFound, match="no-such-tool is not installed"):
        run(["no-such-tool"])
    with pytest.raises(Unavailable, match="did not end within"):
        run(["sleep", "5"], timeout_seconds=0.05)
