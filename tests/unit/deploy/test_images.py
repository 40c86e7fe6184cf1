"""The container images: what the Dockerfile builds, and that the locks say what they must."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.kubernetes.manifests import TARGETS
from tools.lock import IMAGES, direct_requirements, problems_of, problems_of_text

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"

CONTROL = next(image for image in IMAGES if image.name == "control")


def test_the_locks_are_complete_and_agree_with_the_tests():
    """Every lock names all direct requirements, once, with hashes, in the tested versions."""
    assert [problem for image in IMAGES for problem in problems_of(image)] == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (r"^grpcio==.*\n", "", "grpcio>=1.85.1 of pyproject.toml is missing"),
        (r"^grpcio==\S+", "grpcio==1.0.0", "wants grpcio>=1.85.1 and 1.0.0 is locked"),
        (r"^aetcd==(\S+) \S+", r"aetcd==\1", "is not NAME==VERSION --hash"),
        (r"^aetcd==", "aetcd>=", "is not NAME==VERSION --hash"),
        (r"^idna==\S+", "idna==3.0", "idna 3.0 is locked and the tests run with"),
        (r"^(idna==.*\n)", r"\1\1", "a package stands twice"),
    ],
)
def test_a_wrong_lock_is_found(before, after, said):
    """A package that is missing, loose, doubled, unhashed or untested is named."""
    text, count = re.subn(before, after, CONTROL.lock.read_text(), flags=re.MULTILINE)
    assert count == 1
    assert any(said in problem for problem in problems_of_text(CONTROL, text))


def test_control_is_small():
    """The control image holds no torch, no engine and nothing of CUDA."""
    heavy = re.compile(r"^(torch|vllm|megatron|transformers|triton|nvidia|cuda)", re.MULTILINE)
    assert not heavy.search(CONTROL.lock.read_text())


def test_gpu_images_hold_cuda_13():
    """torch and vLLM of the GPU images are the CUDA builds of the versions the tests ran with."""
    for name in ("trainer-gpu", "generation-gpu"):
        image = next(each for each in IMAGES if each.name == name)
        text = image.lock.read_text()
        torch = next(str(each) for each in direct_requirements(image) if each.name == "torch")
        assert f"\n{torch} " in text
        assert re.search(r"^nvidia-nccl-cu13==", text, re.MULTILINE)
        assert "nvidia-nccl-cu12==" not in text


def test_the_dockerfile_passes_hadolint():
    """hadolint finds nothing to say."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_every_image_runs_as_an_ordinary_user_and_says_how_it_is():
    """Each target ends as user 10001 with a health check, and copies its own packages."""
    text = DOCKERFILE.read_text()
    for target in TARGETS:
        stage = text.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert "USER 10001:10001" in stage
        assert "HEALTHCHECK" in stage
        assert f"--from={target}-packages" in stage
        lock = text.split(f" AS {target}-packages\n")[1].split("\nFROM ")[0]
        assert f"deploy/docker/locks/{target}" in lock
    assert "PIP_REQUIRE_HASHES=1" in text
