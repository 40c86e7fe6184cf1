"""The profiler on this machine, as users start it: real trainer, real vLLM, tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import Workload, estimate_call
from realloc.cost.profile import LinkKind, Profile, estimated_seconds, sample_shape
from realloc.cost.profile_file import read_profile
from realloc.cost.profile_fit import fit_profile
from realloc.cost.ratios import Work
from realloc.dataflow.graph import CallKind

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}


def run_profiler(folder: Path) -> str:
    arguments = [str(folder), "--output", str(folder / "profile.json"), "--reuse"]
    arguments += ["--devices", "2", "--tensor", "1", "2", "--rows", "4", "16", "--lengths", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.profile_hardware", *arguments, "--seconds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiny")
    (found / "config.json").write_text(json.dumps(CONFIG))
    return found


@pytest.fixture(scope="module")
def profile(folder: Path) -> Profile:
    run_profiler(folder)
    return read_profile(folder / "profile.json")


def test_every_kind_of_work_is_measured(profile: Profile) -> None:
    """Layers, head, step, prefill and decoding for both tensor degrees, links of two processes."""
    seen = {(sample.work, sample.tensor) for sample in profile.samples}
    wanted = {Work.LAYER_FORWARD, Work.LAYER_BACKWARD, Work.HEAD_FORWARD, Work.HEAD_TRAIN}
    wanted |= {Work.STEP, Work.PREFILL}
    assert {(work, tensor) for work in wanted for tensor in (1, 2)} <= seen
    assert {link.kind for link in profile.links} == set(LinkKind)
    assert profile.devices_at_once == 2
    assert {"torch", "megatron-core", "vllm"} <= set(profile.versions)


def test_its_hardware_predicts_what_was_measured(profile: Profile) -> None:
    """Every sample whose shape is looked up comes out as measured, and calls can be costed."""
    hardware = fit_profile(profile).hardware
    for sample in profile.samples:
        if sample_shape(sample, profile) is not None:
            again = estimated_seconds(sample, profile, hardware)
            assert again == pytest.approx(sample.seconds, rel=0.01)
    ((_, model),) = profile.models.items()
    work = Workload(num_rows=16, prompt_tokens=4, response_tokens=4)
    for kind in CallKind:
        assert estimate_call(kind, model, ParallelStrategy(), work, hardware).seconds > 0


def test_a_profile_that_holds_is_kept(folder: Path, profile: Profile) -> None:
    """The same device, versions and model: nothing is measured again."""
    before = (folder / "profile.json").read_bytes()
    assert "kept" in run_profiler(folder)
    assert (folder / "profile.json").read_bytes() == before
