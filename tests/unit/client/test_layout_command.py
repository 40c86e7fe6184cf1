"""`realloc layout`: what ranks store and what moves, offline."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from realloc.client.cli import main
from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout, LayoutKind
from tests.tiny_models import tiny_config_text


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with a configuration, and no weights."""
    (tmp_path / "config.json").write_text(tiny_config_text("llama"))
    return str(tmp_path)


def test_ranks_together_hold_every_replica_of_the_model(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two replicas cut in two: the bytes without padding are those of the model, twice, and
    norms once more per tensor rank."""
    assert main(["layout", "show", model, "--layout", "d2t2p1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    held = sum(rank["num_bytes"] - rank["padding_bytes"] for rank in shown["ranks"])
    elements = 2 * 259 * 64 + 2 * (64 * (128 + 2 * 64 + 128) + 3 * 64 * 128 + 2 * 64) + 64
    norms = 5 * 64
    assert shown["layout"] == "megatron:d2t2p1@0,1,2,3"
    assert held == 4 * (2 * elements + 2 * norms)


def test_a_difference_shows_each_figure_beside_its_bound(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table names the layouts, and the crossing bytes next to the least possible."""
    arguments = ["layout", "diff", "d1t2p1@0-1", "vllm:d2t1p1@0-1", "--model", model]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "megatron:d1t2p1@0-1 → vllm:d2t1p1@0-1" in text
    assert "across devices             513.50 KiB      513.50 KiB" in text
    assert main([*arguments, "--json", "--dtype", "bfloat16"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["traffic"]["cross_device_bytes"] == 513.5 * 1024 / 2
    received = sum(sum(each["bytes_from"].values()) for each in values["receivers"])
    assert received == values["traffic"]["total_bytes"]


def test_one_rank_is_shown_parameter_by_parameter(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line says which part of which tensor lies where."""
    assert main(["layout", "show", model, "--layout", "vllm:d1t2p1", "--rank", "1"]) == 0
    text = capsys.readouterr().out
    assert "model.embed_tokens.weight [160×64]" in text


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ("d2t3p1", "num_attention_heads is 4"),
        ("d2t4", "not of the form d2t4p1"),
        ("jax:d1t1p1", "'jax' is none of fsdp, huggingface, megatron, vllm"),
        ("d2t1p1@0", "has 1 devices and d2t1p1 needs 2"),
        ("d2t1p1@0-", "not a list of devices"),
        ("d2t1p1@1-0", "'1-0' ends before it begins"),
        ("d2t1p1@0-999999999999999", "has 1000000000000000 devices in 0-999999999999999"),
    ],
)
def test_a_wrong_layout_is_one_clear_message(
    model: str, capsys: pytest.CaptureFixture[str], layout: str, problem: str
) -> None:
    """Status 1, and a sentence that says what to change."""
    assert main(["layout", "show", model, "--layout", layout]) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gemma3"}, "has model_type 'gemma3'; known: gemma2, gemma3_text"),
        ({"mlp_bias": True}, "mlp_bias: is true"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers: is [0]"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step: is 2"),
    ],
)
def test_a_model_with_other_tensors_than_its_family_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], problem: str
) -> None:
    """Nothing is shown of tensors that the model does not have."""
    (tmp_path / "config.json").write_text(tiny_config_text("llama", **changes))
    assert main(["layout", "show", str(tmp_path), "--layout", "d1t1p1"]) == 1
    assert problem in capsys.readouterr().err


def test_of_two_layouts_the_wrong_one_is_named(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of both, with its devices, and why."""
    assert main(["layout", "diff", "d1t2p1", "vllm:d1t3p1@2-4", "--model", model]) == 1
    assert "vllm:d1t3p1@2-4: strategy: num_attention_heads is 4" in capsys.readouterr().err


def test_axes_of_experts_and_context_are_shown_where_there_are_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four data ranks each second one holds the same experts."""
    experts = {"model_type": "mixtral", "num_local_experts": 4}
    (tmp_path / "config.json").write_text(tiny_config_text("llama", **experts))
    assert main(["layout", "show", str(tmp_path), "--layout", "d4t1p1c2e2"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()[3:]
    assert header.split()[2:7] == ["data", "tensor", "stage", "context", "expert"]
    assert [row.split()[6] for row in rows] == ["0", "0", "1", "1"] * 2


def test_a_missing_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that could not be read stands in the message."""
    assert main(["layout", "show", str(tmp_path), "--layout", "d1t1p1"]) == 1
    assert "config.json" in capsys.readouterr().err


def test_the_text_of_a_layout_is_read_back() -> None:
    """`Layout.parse` is the opposite of `str`, with ranges and defaults besides."""
    layout = Layout.parse("vllm:d2t2p1@4-6,9")
    assert layout.devices == (4, 5, 6, 9)
    assert Layout.parse(str(layout)) == Layout.parse(layout.short) == layout
    assert layout.short == "vllm:d2t2p1@4-6,9"
    assert Layout.parse("d1t2p1", LayoutKind.FSDP).kind is LayoutKind.FSDP
    with pytest.raises(InvalidInput, match="twice"):
        Layout.parse("d1t2p1@1,1")


def test_it_needs_no_service_and_no_torch(model: str) -> None:
    """The light client is enough: neither torch nor gRPC is imported."""
    code = (
        "import sys; from realloc.client.cli import main;"
        f"main(['layout', 'show', {model!r}, '--layout', 'd1t2p1']);"
        "bad = {'torch', 'grpc', 'rich', 'numba'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
