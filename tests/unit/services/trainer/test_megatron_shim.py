"""The CPU shim fits one version of Megatron-core and leaves everybody else's torch alone."""

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys
import megatron.core
{before}
from services.trainer import megatron_shim
import torch
zeros, current_device = torch.zeros, torch.cuda.current_device
megatron_shim.install()
megatron_shim.install()
assert torch.zeros is zeros
assert torch.cuda.current_device is current_device
from megatron.core.pipeline_parallel import schedules
print(schedules.torch.zeros(2, device="cuda").device, schedules.torch.cuda.current_device())
assert torch.ones(1).type() == "torch.FloatTensor"
"""


@pytest.fixture(autouse=True)
def needs_no_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("the shim does nothing where CUDA exists")


def run(before: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(before=before)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_only_megatron_sees_the_cpu_as_its_device() -> None:
    """Megatron-core's modules make their CUDA tensors on the CPU; torch itself is unchanged."""
    result = run("")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["cpu", "cpu"]


def test_another_version_is_refused() -> None:
    """Under a version that it was not written for, the shim says which one to install."""
    result = run("megatron.core.__version__ = '0.17.0'")
    assert result.returncode != 0
    assert "megatron-core==0.16.1" in result.stderr
