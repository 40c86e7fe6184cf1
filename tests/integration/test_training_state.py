"""Training goes on from saved state as if it had never stopped, also in another layout."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from realloc.core.checkpoint_folder import Checkpoint, SavedFile
from realloc.core.errors import ReallocError
from realloc.core.model import Head
from services.trainer.engine import ModelSpec, TrainResult
from tests.support.engine_ranks import (
    OPTIMIZER,
    EngineRanks,
    call_settings,
    model_spec,
    random_batch,
    start_job,
    train,
    whole_weights,
)
from tests.support.saved_states import save_state
from tests.tiny_models import tiny_hf_model

NUM_RANKS = 4
STEPS = 2
"""Steps before the checkpoint, and again after it."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[EngineRanks]:
    with EngineRanks(NUM_RANKS) as processes:
        yield processes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose embeddings are tied, so that two stages hold the same tensor."""
    folder = tmp_path_factory.mktemp("model")
    tiny_hf_model("llama", 0, folder, tie_word_embeddings=True)
    return folder


def specs(source: Path, strategy: str, **more: Any) -> tuple[ModelSpec, ModelSpec]:
    """An actor and a critic."""
    return (
        model_spec("actor", source, strategy, **more),
        model_spec("critic", source, strategy, head=Head.VALUE, **more),
    )


def steps(ranks: EngineRanks, pair: tuple[ModelSpec, ModelSpec], first: int) -> list[TrainResult]:
    actor, critic = pair
    results = []
    for number in range(first, first + STEPS):
        batch = [random_batch(6, seed=number)]
        results.append(train(ranks, actor, call_settings("sft"), batch))
        results.append(train(ranks, critic, call_settings("ppo_critic"), batch))
    return results


@pytest.fixture(scope="module")
def straight(
    ranks: EngineRanks, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Checkpoint, list[TrainResult], dict[str, Any]]]:
    """By strategy: state after two steps, and what two more steps gave without a stop."""
    found = {}
    for strategy in ("d2t2p1", "d2t1p2"):
        pair = specs(source, strategy)
        start_job(ranks, NUM_RANKS)
        for spec in pair:
            ranks.all(NUM_RANKS, "create_model", spec)
        steps(ranks, pair, 0)
        checkpoint = save_state(ranks, NUM_RANKS, tmp_path_factory.mktemp("state"), pair, STEPS)
        results = steps(ranks, pair, STEPS)
        weights = {spec.model_id: whole_weights(ranks, spec) for spec in pair}
        ranks.all(NUM_RANKS, "end_job")
        found[strategy] = (checkpoint, results, weights)
    return found


def resumed(
    ranks: EngineRanks, num_ranks: int, pair: tuple[ModelSpec, ModelSpec], checkpoint: Checkpoint
) -> tuple[list[TrainResult], dict[str, Any]]:
    start_job(ranks, num_ranks)
    for spec in pair:
        ranks.all(num_ranks, "create_model", spec)
    ranks.all(num_ranks, "restore", checkpoint)
    results = steps(ranks, pair, STEPS)
    weights = {spec.model_id: whole_weights(ranks, spec) for spec in pair}
    ranks.all(num_ranks, "end_job")
    return results, weights


@pytest.mark.parametrize("strategy", ["d2t2p1", "d2t1p2"])
def test_the_same_layout_goes_on_bit_by_bit(
    ranks: EngineRanks, source: Path, straight: Any, strategy: str
) -> None:
    """Metrics and weights after the resumed steps are those of the run that never stopped."""
    checkpoint, expected, weights = straight[strategy]
    results, found = resumed(ranks, NUM_RANKS, specs(source, strategy, empty=True), checkpoint)
    assert results == expected
    for model_id, tensors in weights.items():
        for name, values in tensors.items():
            np.testing.assert_array_equal(found[model_id][name], values, err_msg=name)


@pytest.mark.parametrize(
    ("saved", "strategy"),
    [("d2t2p1", "d1t1p1"), ("d2t2p1", "d1t2p2"), ("d2t1p2", "d2t2p1"), ("d2t1p2", "d2t1p1")],
)
def test_another_layout_goes_on_with_the_same_numbers(
    ranks: EngineRanks, source: Path, straight: Any, saved: str, strategy: str
) -> None:
    """Weights, moments and step count arrive in any layout and on any number of ranks."""
    checkpoint, expected, weights = straight[saved]
    pair = specs(source, strategy, empty=True)
    num_ranks = pair[0].layout.strategy.num_ranks
    results, found = resumed(ranks, num_ranks, pair, checkpoint)
    for result, wanted in zip(results, expected, strict=True):
        assert result.weight_version == wanted.weight_version
        assert result.metrics == pytest.approx(wanted.metrics, rel=1e-4, abs=1e-5)
    for model_id, tensors in weights.items():
        for name, values in tensors.items():
            np.testing.assert_allclose(found[model_id][name], values, atol=2e-6, err_msg=name)


def test_a_model_that_has_not_trained_yet_is_saved_too(
    ranks: EngineRanks, source: Path, tmp_path: Path
) -> None:
    """Before its first step a model has zero moments; its critic may have trained already."""
    pair = specs(source, "d2t2p1")
    start_job(ranks, NUM_RANKS)
    for spec in pair:
        ranks.all(NUM_RANKS, "create_model", spec)
    checkpoint = save_state(ranks, NUM_RANKS, tmp_path, pair, 0)
    expected = steps(ranks, pair, STEPS)
    ranks.all(NUM_RANKS, "end_job")
    results, _ = resumed(ranks, NUM_RANKS, specs(source, "d2t2p1", empty=True), checkpoint)
    assert results == expected


def test_frozen_parts_are_saved_too(ranks: EngineRanks, source: Path, tmp_path: Path) -> None:
    """The optimizer knows nothing of them; a run that goes on has their weights all the same."""
    optimizer = replace(OPTIMIZER, frozen=("model.embed_tokens", "model.layers.0"))

    def pair(**more: Any) -> tuple[ModelSpec, ModelSpec]:
        actor, critic = specs(source, "d2t2p1", **more)
        return replace(actor, optimizer=optimizer), replace(critic, optimizer=optimizer)

    start_job(ranks, NUM_RANKS)
    for spec in pair():
        ranks.all(NUM_RANKS, "create_model", spec)
    steps(ranks, pair(), 0)
    checkpoint = save_state(ranks, NUM_RANKS, tmp_path, pair(), STEPS)
    expected = steps(ranks, pair(), STEPS)
    weights = {spec.model_id: whole_weights(ranks, spec) for spec in pair()}
    ranks.all(NUM_RANKS, "end_job")
    results, found = resumed(ranks, NUM_RANKS, pair(empty=True), checkpoint)
    assert results == expected
    for model_id, tensors in weights.items():
        for name, values in tensors.items():
            np.testing.assert_array_equal(found[model_id][name], values, err_msg=name)


def test_every_element_is_saved_once(straight: Any, source: Path) -> None:
    """The pieces of a tensor cover it exactly, whatever is replicated over tensor ranks and
    stages."""
    for checkpoint, _, weights in straight.values():
        saved: dict[str, int] = {}
        for file in checkpoint.manifest.files:
            for name, values in load_file(checkpoint.path / file.name).items():
                model, _, tensor = name.rpartition("@")[0].split("/")
                saved[f"{model}/{tensor}"] = saved.get(f"{model}/{tensor}", 0) + values.size
        assert saved == {
            f"{model_id}/{name}": 3 * values.size
            for model_id, tensors in weights.items()
            for name, values in tensors.items()
        }


def refusals(engine: Any, checkpoint: Checkpoint) -> str:
    """Runs in a rank process."""
    try:
        engine.restore(checkpoint)
    except ReallocError as error:
        return f"{type(error).__name__}: {error}"
    return "restored"


def test_a_changed_file_is_refused_by_name_on_every_rank(
    ranks: EngineRanks, source: Path, tmp_path: Path
) -> None:
    """One flipped bit in one rank's file: nobody goes on, and the message names the file."""
    pair = specs(source, "d1t2p1")
    start_job(ranks, 2)
    for spec in pair:
        ranks.all(2, "create_model", spec)
    checkpoint = save_state(ranks, 2, tmp_path, pair, 0)
    path = checkpoint.path / checkpoint.manifest.files[1].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = ranks.run(refusals, [(checkpoint,)] * 2)
    assert found[0] == "Unavailable: another rank found the checkpoint damaged"
    assert found[1].startswith(f"InvalidInput: {path}")
    assert train(ranks, pair[0], call_settings("sft"), [random_batch(2)]).weight_version == 1
    ranks.all(2, "end_job")


def test_missing_pieces_are_named(ranks: EngineRanks, source: Path, tmp_path: Path) -> None:
    """A checkpoint that lacks a tensor is not silently zero."""
    actor = model_spec("actor", source, "d1t1p1")
    start_job(ranks, 1)
    ranks.all(1, "create_model", actor)
    checkpoint = save_state(ranks, 1, tmp_path, [actor], 0)
    path = checkpoint.path / checkpoint.manifest.files[0].name
    tensors = load_file(path)
    name = next(each for each in tensors if each.startswith("actor/exp_avg_sq/model.norm"))
    del tensors[name]
    save_file(tensors, path)
    file = SavedFile(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    manifest = replace(checkpoint.manifest, files=(file,))
    found = ranks.run(refusals, [(replace(checkpoint, manifest=manifest),)])
    assert "lacks" in found[0]
    ranks.all(1, "end_job")
