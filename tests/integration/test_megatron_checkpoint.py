"""Checkpoints go through any Megatron layout and come back bit by bit."""

import ctypes
import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from realloc.core.errors import ReallocError
from realloc.core.model import Head, ModelArchitecture
from realloc.reallocation.families import canonical_tensors
from tests.support.engine_ranks import (
    EngineRanks,
    call_settings,
    infer,
    model_spec,
    random_batch,
    start_job,
    train,
    whole_weights,
)
from tests.tiny_models import tiny_config, tiny_hf_model

NUM_RANKS = 4


@pytest.fixture(scope="module")
def ranks() -> Iterator[EngineRanks]:
    with EngineRanks(NUM_RANKS) as processes:
        yield processes


@pytest.fixture
def job(ranks: EngineRanks) -> Iterator[EngineRanks]:
    start_job(ranks, NUM_RANKS)
    yield ranks
    ranks.all(NUM_RANKS, "end_job")


def limit_file_size(engine: Any, num_bytes: int) -> None:
    """Runs in a rank process."""
    from services.trainer import checkpoint

    checkpoint.MAX_FILE_BYTES = num_bytes


def refusal(engine: Any, method: str, *arguments: Any) -> str:
    """What a call raises. Runs in a rank process."""
    try:
        getattr(engine, method)(*arguments)
    except ReallocError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{method} was not refused")


@pytest.mark.parametrize("strategy", ["d1t2p2", "d2t1p2", "d1t1p1"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen2", {}), ("qwen3", {})],
)
def test_round_trip_is_exact(
    job: EngineRanks, tmp_path: Path, family: str, changes: dict[str, Any], strategy: str
) -> None:
    """Loaded into a layout and saved again, every tensor has the same bits, and transformers
    loads the folder."""
    from transformers import AutoModelForCausalLM

    source, target = tmp_path / "source", tmp_path / "target"
    reference = tiny_hf_model(family, 0, source, **changes)
    (source / "tokenizer.json").write_text("{}")
    job.all(NUM_RANKS, "create_model", model_spec("model", source, strategy))
    job.all(NUM_RANKS, "save_checkpoint", "model", str(target))
    original, copy = (
        load_file(source / "model.safetensors"),
        load_file(target / "model.safetensors"),
    )
    assert original.keys() == copy.keys()
    for name, tensor in original.items():
        assert torch.equal(tensor, copy[name]), name
    assert (target / "COMPLETE").exists()
    assert (target / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    again = AutoModelForCausalLM.from_pretrained(target)
    assert again.config.tie_word_embeddings == reference.config.tie_word_embeddings
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, reference(ids).logits)


def test_a_trained_critic_comes_back(job: EngineRanks, tmp_path: Path) -> None:
    """A value model starts from a language model, is trained, saved in several files over an
    older checkpoint, and loaded into another layout with its head."""
    from transformers import AutoModelForSequenceClassification

    source, target = tmp_path / "source", tmp_path / "target"
    tiny_hf_model("llama", 0, source, tie_word_embeddings=True)
    target.mkdir()
    (target / "old").touch()
    spec = model_spec("critic", source, "d1t2p2", head=Head.VALUE)
    job.all(NUM_RANKS, "create_model", spec)
    batch = random_batch(5)
    train(job, spec, call_settings("ppo_critic"), [batch])
    job.run(limit_file_size, [(60_000,)] * NUM_RANKS)
    job.all(NUM_RANKS, "save_checkpoint", "critic", str(target))
    job.run(limit_file_size, [(2**30,)] * NUM_RANKS)
    assert not (target / "old").exists()
    assert (target / "COMPLETE").read_text() == "1\n"
    assert len(list(target.glob("model-*.safetensors"))) > 2
    again = model_spec("again", target, "d2t2p1", head=Head.VALUE, trains=False)
    job.all(NUM_RANKS, "create_model", again)
    expected = whole_weights(job, spec)
    assert "score.weight" in expected
    for name, weights in whole_weights(job, again).items():
        np.testing.assert_array_equal(weights, expected[name], err_msg=name)
    scores = infer(job, again, call_settings("score"), batch).fields["score"].values
    classifier = AutoModelForSequenceClassification.from_pretrained(target)
    classifier.config.pad_token_id = 258
    for tokens, score in zip(batch.fields["tokens"].rows(), scores, strict=True):
        with torch.no_grad():
            logits = classifier(torch.tensor(tokens[None], dtype=torch.long)).logits
        np.testing.assert_allclose(logits.item(), score, atol=1e-4)


def test_random_weights_do_not_depend_on_the_layout(job: EngineRanks, tmp_path: Path) -> None:
    """The same seed gives the same model in each layout, another seed another one; norms are
    one, biases zero, and the rest has the wanted spread."""
    tiny_hf_model("qwen2", 0, tmp_path)
    found = {}
    for number, strategy in enumerate(("d1t1p1", "d1t2p2", "d2t2p1")):
        spec = model_spec(f"m{number}", tmp_path, strategy, checkpoint="", initializer_range=0.5)
        job.all(NUM_RANKS, "create_model", spec)
        found[strategy] = whole_weights(job, spec)
    other = replace(model_spec("other", tmp_path, "d1t1p1", checkpoint=""), seed=8)
    job.all(NUM_RANKS, "create_model", other)
    different = whole_weights(job, other)
    for name, weights in found["d1t1p1"].items():
        for strategy in ("d1t2p2", "d2t2p1"):
            np.testing.assert_array_equal(weights, found[strategy][name])
        if weights.ndim == 1:
            assert (weights == (0 if name.endswith("bias") else 1)).all()
        else:
            np.testing.assert_allclose(weights.std(), 0.5, rtol=0.05)
            assert (weights != different[name]).mean() > 0.9


def test_a_random_model_is_saved_with_a_configuration_of_its_own(
    job: EngineRanks, tmp_path: Path
) -> None:
    """Without any checkpoint to carry over, transformers still loads what is saved."""
    from transformers import AutoModelForCausalLM

    source, target = tmp_path / "source", tmp_path / "target"
    tiny_hf_model("qwen3", 0, source)
    spec = model_spec("model", source, "d1t2p1", checkpoint="", first_device=1)
    job.all(NUM_RANKS, "create_model", spec)
    job.all(NUM_RANKS, "save_checkpoint", "model", str(target))
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(target)
    assert again.config.head_dim == 32


def test_jobs_follow_each_other(ranks: EngineRanks, tmp_path: Path) -> None:
    """A process serves jobs of different world sizes one after the other, each from scratch."""
    tiny_hf_model("llama", 0, tmp_path)
    seen = []
    for num_ranks, strategy in ((2, "d1t2p1"), (4, "d2t1p2"), (1, "d1t1p1")):
        start_job(ranks, num_ranks)
        spec = model_spec("model", tmp_path, strategy)
        ranks.all(num_ranks, "create_model", spec)
        seen.append(train(ranks, spec, call_settings("sft"), [random_batch(6)]))
        ranks.all(num_ranks, "end_job")
        assert "start one first" in ranks.run(refusal, [("weight_version", "model")])[0]
    assert [result.weight_version for result in seen] == [1, 1, 1]
    assert len({round(result.metrics["loss"], 4) for result in seen}) == 1


def test_wrong_inputs_name_what_is_wrong(job: EngineRanks, tmp_path: Path) -> None:
    """Each wrong model or call gives one clear message on every rank, and the job goes on."""
    good = tmp_path / "good"
    tiny_hf_model("llama", 0, good)

    def refused(spec: Any, *parts: str) -> None:
        for message in job.run(refusal, [("create_model", spec)] * NUM_RANKS):
            assert all(part in message for part in parts), message

    def call_refused(call: tuple[Any, ...], *parts: str) -> None:
        (message,) = job.run(refusal, [call])
        assert all(part in message for part in parts), message

    spec = model_spec("model", good, "d1t1p1")
    refused(replace(spec, checkpoint=str(tmp_path / "none")), "checkpoint", "none")
    bad = tmp_path / "bad"
    bad.mkdir()
    tensors = load_file(good / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:5].contiguous()
    save_file(tensors, bad / "model.safetensors")
    refused(replace(spec, checkpoint=str(bad)), "model.norm.weight", "lm_head.weight is [5, 64]")
    (bad / "model.safetensors").write_bytes(b"not tensors")
    refused(replace(spec, checkpoint=str(bad)), "cannot be read")
    refused(model_spec("model", good, "d1t4p1"), "num_key_value_heads: is 2", "4 tensor ranks")
    refused(model_spec("model", good, "d1t1p1", first_device=9), "layout", "[9]")
    job.all(NUM_RANKS, "create_model", spec)
    batch = random_batch(2)
    incomplete = replace(batch, fields={"tokens": batch.fields["tokens"]})
    call_refused(("train", "model", call_settings("ppo_critic"), [batch]), "needs a value head")
    call_refused(("infer", "model", call_settings("sleep"), batch), "'sleep'")
    call_refused(("infer", "model", call_settings("logprobs"), incomplete), "prompt_length")
    call_refused(("weight_version", "nobody"), "NotFound", "nobody")
    call_refused(("create_model", spec), "Conflict", "model")
    assert train(job, spec, call_settings("sft"), [random_batch(2)]).weight_version == 1


WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "vocab_size": 8192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
"""334 MiB in float32, the embeddings 32 MiB each."""


def peak_bytes(engine: Any, method: str, *arguments: Any) -> int:
    """Most that the process held during a call, above what it held before. Runs in a rank
    process; file pages that are mapped count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or free memory of earlier calls would hide some
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = status_bytes("VmRSS")
    getattr(engine, method)(*arguments)
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def test_loading_and_exporting_hold_two_tensors_besides_the_shard(
    job: EngineRanks, tmp_path: Path
) -> None:
    """Loading into TP2 a rank never holds more than its own shard and twice the largest tensor;
    exporting from TP2·PP2 no rank holds more than that above its shard; the bits are the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    config = tiny_config("llama", **WIDE)
    (source / "config.json").write_text(json.dumps(config))
    tensors = canonical_tensors(ModelArchitecture.from_hf_config(config))
    random = np.random.default_rng(0)
    weights = {
        tensor.name: torch.from_numpy(random.standard_normal(tensor.shape, dtype=np.float32))
        for tensor in tensors
    }
    save_file(weights, source / "model.safetensors")
    spare = 2 * 4 * max(tensor.num_elements for tensor in tensors)
    shard = 4 * sum(tensor.num_elements for tensor in tensors) // 2

    spec = model_spec("tp2", source, "d1t2p1", trains=False)
    loading = job.run(peak_bytes, [("create_model", spec)] * NUM_RANKS)
    assert shard < max(loading) < shard + spare
    wider = model_spec("tp2pp2", source, "d1t2p2", trains=False)
    job.all(NUM_RANKS, "create_model", wider)
    exporting = job.run(peak_bytes, [("save_checkpoint", "tp2pp2", str(target))] * NUM_RANKS)
    assert max(exporting) < spare
    copy = load_file(target / "model.safetensors")
    assert all(torch.equal(weights[name], copy[name]) for name in weights)


def progress_of(engine: Any, method: str, *arguments: Any) -> list[tuple[int, int]]:
    """How far a call says that it is. Runs in a rank process."""
    steps: list[tuple[int, int]] = []
    getattr(engine, method)(*arguments, progress=lambda done, total: steps.append((done, total)))
    return steps


def test_long_calls_say_how_far_they_are(job: EngineRanks, tmp_path: Path) -> None:
    """Loading and exporting count elements up to all of them, without a step back."""
    tiny_hf_model("llama", 0, tmp_path)
    spec = model_spec("model", tmp_path, "d1t2p2")
    loading = job.run(progress_of, [("create_model", spec)] * NUM_RANKS)
    exporting = job.run(
        progress_of, [("save_checkpoint", "model", str(tmp_path / "target"))] * NUM_RANKS
    )
    for steps in (*loading, *exporting):
        assert len(steps) > 5
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
