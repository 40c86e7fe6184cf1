"""Megatron-core models in every layout agree with Hugging Face, and with each other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from realloc.core.batch import Batch
from realloc.core.errors import InvalidInput
from realloc.core.model import Head
from realloc.core.settings import OptimizerSettings
from realloc.reallocation.frozen import is_frozen
from services.trainer.engine import ModelSpec, TrainResult
from tests.support.engine_ranks import (
    OPTIMIZER,
    EngineRanks,
    call_settings,
    infer,
    logits_of,
    model_spec,
    random_batch,
    start_job,
    train,
    weights_of,
    whole_weights,
)
from tests.tiny_models import tiny_hf_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama31": ("llama", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3_ROPE}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
LAYOUTS = ("d1t1p1", "d1t2p1", "d2t1p1", "d1t1p2")


@pytest.fixture(scope="module")
def ranks() -> Iterator[EngineRanks]:
    with EngineRanks(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and transformers model of each tiny model."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: (root / name, tiny_hf_model(family, 0, root / name, **changes))
        for name, (family, changes) in TINY_MODELS.items()
    }


@pytest.fixture
def job(ranks: EngineRanks) -> Iterator[EngineRanks]:
    """A job over both ranks."""
    start_job(ranks, 2)
    yield ranks
    ranks.all(2, "end_job")


def create(ranks: EngineRanks, spec: ModelSpec) -> ModelSpec:
    ranks.all(2, "create_model", spec)
    return spec


def reference_logits(model: Any, batch: Batch) -> list[torch.Tensor]:
    """transformers' logits that predict each row's response."""
    rows = zip(batch.fields["tokens"].rows(), batch.fields["prompt_length"].values, strict=True)
    with torch.no_grad():
        return [
            model(torch.tensor(tokens[None], dtype=torch.long)).logits[0, prompt - 1 : -1]
            for tokens, prompt in rows
        ]


def reference_logprobs(model: Any, batch: Batch, temperature: float) -> np.ndarray:
    found = []
    rows = zip(batch.fields["tokens"].rows(), batch.fields["prompt_length"].values, strict=True)
    for logits, (tokens, prompt) in zip(reference_logits(model, batch), rows, strict=True):
        targets = torch.tensor(tokens[prompt:], dtype=torch.long)
        logprobs = (logits / temperature).log_softmax(-1)
        found.append(logprobs.gather(1, targets.unsqueeze(1)).squeeze(1))
    return torch.cat(found).numpy()


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("strategy", LAYOUTS)
def test_logprobs_equal_hugging_face(
    job: EngineRanks, models: dict[str, tuple[Path, Any]], name: str, strategy: str
) -> None:
    """Log-probabilities of the response under a temperature equal transformers' to 1e-4."""
    folder, reference = models[name]
    spec = create(job, model_spec("ref", folder, strategy, trains=False))
    batch = random_batch(7, seed=1)
    found = infer(job, spec, call_settings("logprobs", temperature=0.7), batch)
    lengths = batch.fields["tokens"].lengths - batch.fields["prompt_length"].values
    assert (found.fields["logprobs"].lengths == lengths).all()
    assert_allclose(
        found.fields["logprobs"].values, reference_logprobs(reference, batch, 0.7), atol=1e-4
    )


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("strategy", ["d1t1p1", "d1t2p1"])
def test_logits_equal_hugging_face(
    job: EngineRanks, models: dict[str, tuple[Path, Any]], name: str, strategy: str
) -> None:
    """Logits equal transformers' to 1e-4, also when the ranks hold parts of the vocabulary."""
    folder, reference = models[name]
    spec = create(job, model_spec("ref", folder, strategy, trains=False))
    batch = random_batch(6, seed=2)
    columns = job.run(logits_of, [("ref", batch)] * spec.layout.strategy.num_ranks)
    found = np.concatenate([logits for (logits,) in columns], 1)[:, :259]
    assert_allclose(found, torch.cat(reference_logits(reference, batch)).numpy(), atol=1e-4)


def test_packed_rows_equal_rows_alone(
    job: EngineRanks, models: dict[str, tuple[Path, Any]]
) -> None:
    """A packed batch gives what its rows give one by one, padded or not, in the rows' order."""
    spec = create(job, model_spec("ref", models["qwen3"][0], "d1t1p1", trains=False))
    batch = random_batch(9, seed=3)
    long = random_batch(1, seed=4)
    uneven = Batch.concatenate([batch.take([0, 1, 2, 3, 4]), _stretched(long, 400)])
    for rows in (batch, uneven):
        settings = call_settings("logprobs", max_tokens=1000)
        packed = infer(job, spec, settings, rows).fields["logprobs"].rows()
        for index, expected in enumerate(packed):
            alone = infer(job, spec, settings, rows.take([index]))
            assert_allclose(alone.fields["logprobs"].values, expected, atol=2e-5)


def _stretched(row: Batch, length: int) -> Batch:
    """The row with a response that makes it this long."""
    from realloc.core.batch import RaggedArray

    tokens = np.resize(row.fields["tokens"].values, length)
    response = length - int(row.fields["prompt_length"].values[0])
    fields = dict(row.fields) | {
        "tokens": RaggedArray.from_rows([tokens], "int32"),
        "loss_mask": RaggedArray.from_rows([np.ones(length)], "float32"),
    }
    for name in ("logprobs", "ref_logprobs", "values"):
        fields[name] = RaggedArray.from_rows([np.zeros(response)], "float32")
    return Batch(fields=fields)


@pytest.mark.parametrize("strategy", LAYOUTS)
def test_values_and_scores(
    job: EngineRanks, models: dict[str, tuple[Path, Any]], strategy: str
) -> None:
    """A value stands before the token it belongs to, a score on the last; both equal the head
    applied to transformers' hidden states."""
    folder, reference = models["llama_tied"]
    spec = create(job, model_spec("critic", folder, strategy, head=Head.VALUE, trains=False))
    batch = random_batch(5, seed=5)
    head = torch.from_numpy(whole_weights(job, spec)["score.weight"])
    values, scores = [], []
    rows = zip(batch.fields["tokens"].rows(), batch.fields["prompt_length"].values, strict=True)
    for tokens, prompt in rows:
        with torch.no_grad():
            hidden = reference.model(torch.tensor(tokens[None], dtype=torch.long))[0][0]
        numbers = (hidden @ head.T).squeeze(1)
        values.append(numbers[prompt - 1 : -1])
        scores.append(numbers[-1:])
    found = infer(job, spec, call_settings("values"), batch).fields["values"]
    assert_allclose(found.values, torch.cat(values).numpy(), atol=1e-4)
    found = infer(job, spec, call_settings("score"), batch).fields["score"]
    assert (found.lengths == 1).all()
    assert_allclose(found.values, torch.cat(scores).numpy(), atol=1e-4)


@dataclass(frozen=True)
class _Trained:
    results: list[TrainResult]
    weights: dict[str, np.ndarray]
    before: dict[str, np.ndarray]


_LOSSES = {
    "sft": ("llama_tied", Head.LM),
    "ppo_actor": ("qwen3", Head.LM),
    "ppo_critic": ("qwen2", Head.VALUE),
}


def _train(
    job: EngineRanks, models: dict[str, tuple[Path, Any]], loss: str, strategy: str
) -> _Trained:
    """Two calls: of two uneven mini-batches, and of one with a single row."""
    name, head = _LOSSES[loss]
    spec = create(job, model_spec("model", models[name][0], strategy, head=head))
    before = whole_weights(job, spec)
    settings = call_settings(loss, max_tokens=64)
    results = [
        train(job, spec, settings, [random_batch(11, seed=6), random_batch(5, seed=7)]),
        train(job, spec, settings, [random_batch(1, seed=8)]),
    ]
    return _Trained(results, whole_weights(job, spec), before)


@pytest.fixture(scope="module")
def on_one_rank(ranks: EngineRanks, models: dict[str, tuple[Path, Any]]) -> dict[str, _Trained]:
    """What each loss does without any parallelism."""
    found = {}
    for loss in _LOSSES:
        start_job(ranks, 2)
        found[loss] = _train(ranks, models, loss, "d1t1p1")
        ranks.all(2, "end_job")
    return found


@pytest.mark.parametrize("loss", _LOSSES)
@pytest.mark.parametrize("strategy", LAYOUTS[1:])
def test_training_does_not_depend_on_the_layout(
    job: EngineRanks,
    models: dict[str, tuple[Path, Any]],
    on_one_rank: dict[str, _Trained],
    loss: str,
    strategy: str,
) -> None:
    """Losses, gradient norms, all metrics and new weights are equal to 1e-5 in each layout,
    also where a data rank has no rows."""
    expected = on_one_rank[loss]
    found = _train(job, models, loss, strategy)
    assert [r.weight_version for r in found.results] == [2, 3]
    for ours, theirs in zip(found.results, expected.results, strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, value in ours.metrics.items():
            assert_allclose(value, theirs.metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert found.weights.keys() == expected.weights.keys()
    for name, weights in found.weights.items():
        assert_allclose(weights, expected.weights[name], rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(weights - found.before[name]).max() > 1e-5, name


def test_a_step_equals_plain_torch(
    job: EngineRanks, models: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """Loss, gradient norm and new weights of a step are those of AdamW on transformers' model,
    with clipping, weight decay on matrices only, and a learning rate that warms up."""
    family, changes = TINY_MODELS["llama"]
    reference = tiny_hf_model(family, 0, tmp_path, **changes)
    settings = OptimizerSettings(
        learning_rate=1e-3, warmup_steps=4, weight_decay=0.1, epsilon=1e-4, max_grad_norm=1.0
    )
    spec = create(job, replace(model_spec("model", tmp_path, "d1t2p1"), optimizer=settings))
    batch = random_batch(8, seed=10)
    found = train(job, spec, call_settings("sft"), [batch])
    parameters = list(reference.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-3 / 4,
        betas=(settings.beta1, settings.beta2),
        eps=1e-4,
    )
    loss = _reference_sft_loss(reference, batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    assert norm > 1, "clipping should matter"
    assert_allclose(found.metrics["loss"], loss.item(), rtol=1e-5)
    assert_allclose(found.metrics["grad_norm"], norm.item(), rtol=1e-5)
    assert_allclose(found.metrics["learning_rate"], 1e-3 / 4)
    expected = reference.state_dict()
    for name, weights in whole_weights(job, spec).items():
        assert_allclose(weights, expected[name].numpy(), atol=1e-6, err_msg=name)


def _reference_sft_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the tokens under the loss mask."""
    losses = []
    rows = zip(batch.fields["tokens"].rows(), batch.fields["loss_mask"].rows(), strict=True)
    for tokens, mask in rows:
        ids = torch.tensor(tokens, dtype=torch.long)
        logits = model(ids.unsqueeze(0)).logits[0, :-1]
        entropies = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        losses.append(entropies[torch.from_numpy(mask[1:] > 0.5)])
    return torch.cat(losses).mean()


@pytest.mark.parametrize(
    ("strategy", "frozen", "recompute"),
    [
        ("d1t2p1", ("model.embed_tokens", "model.layers.0"), True),
        ("d1t1p2", ("model.embed_tokens", "model.layers.1.mlp", "lm_head.weight"), False),
    ],
)
def test_frozen_parts_keep_their_weights_and_the_others_step_as_in_plain_torch(
    job: EngineRanks, tmp_path: Path, strategy: str, frozen: tuple[str, ...], recompute: bool
) -> None:
    """Bit by bit the same as before where frozen; elsewhere the step of transformers' model
    without gradients there, its norm included."""
    family, changes = TINY_MODELS["llama"]
    reference = tiny_hf_model(family, 0, tmp_path, **changes)
    settings = replace(OPTIMIZER, frozen=frozen)
    spec = model_spec("model", tmp_path, strategy, recompute=recompute)
    spec = create(job, replace(spec, optimizer=settings))
    batch = random_batch(8, seed=10)
    before = whole_weights(job, spec)
    found = train(job, spec, call_settings("sft"), [batch])
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(not is_frozen(name, frozen))
    parameters = [each for each in reference.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=0.0,
    )
    _reference_sft_loss(reference, batch).backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    assert_allclose(found.metrics["grad_norm"], norm.item(), rtol=1e-5)
    expected = reference.state_dict()
    for name, weights in whole_weights(job, spec).items():
        assert_allclose(weights, expected[name].numpy(), atol=1e-6, err_msg=name)
        assert (weights == before[name]).all() == is_frozen(name, frozen), name


def test_what_cannot_be_frozen_is_refused(job: EngineRanks, tmp_path: Path) -> None:
    """Half of a fused parameter, and a stage with nothing to train: every problem, no model."""
    tiny_hf_model("llama", 0, tmp_path)
    frozen = ("model.embed_tokens", "model.layers.0", "model.layers.1.self_attn.q_proj")
    spec = model_spec("model", tmp_path, "d1t1p2")
    spec = replace(spec, optimizer=replace(OPTIMIZER, frozen=frozen))
    for problems in job.run(problems_of, [(spec,), (spec,)]):
        assert [text.split(":")[0] for text in problems] == ["optimizer.frozen"] * 2
        assert "leaves nothing to train in stage 0 of d1t1p2" in problems[0]
        assert "linear_qkv.weight holds" in problems[1]
        assert "freeze all or none of them" in problems[1]


def problems_of(engine: Any, spec: ModelSpec) -> list[str]:
    """Why a model is refused. Runs in a rank process."""
    with pytest.raises(InvalidInput) as caught:
        engine.create_model(spec)
    return [str(problem) for problem in caught.value.problems]


def test_recomputed_activations_change_nothing(
    job: EngineRanks, models: dict[str, tuple[Path, Any]]
) -> None:
    """A model that recomputes its activations makes the same step."""
    folder, _ = models["qwen3"]
    plain = create(job, model_spec("plain", folder, "d1t2p1"))
    thrifty = create(job, model_spec("thrifty", folder, "d1t2p1", recompute=True))
    batch = random_batch(6, seed=11)
    results = [train(job, spec, call_settings("sft"), [batch]) for spec in (plain, thrifty)]
    assert_allclose(results[0].metrics["loss"], results[1].metrics["loss"], rtol=1e-6)
    expected = whole_weights(job, plain)
    for name, weights in whole_weights(job, thrifty).items():
        assert_allclose(weights, expected[name], atol=1e-6, err_msg=name)


def test_the_sampler_is_compared_before_the_first_step(
    job: EngineRanks, models: dict[str, tuple[Path, Any]]
) -> None:
    """The difference to the sampler's log-probabilities is that of the weights before the
    call: zero where the sampler had the same, however many steps follow."""
    spec = create(job, model_spec("actor", models["llama"][0], "d2t1p1"))
    batch = random_batch(8, seed=12)
    settings = call_settings("ppo_actor")
    sampled = infer(job, spec, call_settings("logprobs"), batch)
    batch = batch.merge(sampled)
    metrics = train(job, spec, settings, [batch.take(range(4)), batch.take(range(4, 8))]).metrics
    assert metrics["train_rollout_logprob_abs_diff"] < 1e-5
    assert metrics["train_rollout_logprob_abs_diff_max"] < 1e-4
    assert metrics["approx_kl"] > 1e-6, "the second mini-batch sees new weights"
    metrics = train(job, spec, settings, [batch]).metrics
    assert metrics["train_rollout_logprob_abs_diff"] > 1e-4


def test_several_models_with_layouts_of_their_own(
    job: EngineRanks, models: dict[str, tuple[Path, Any]]
) -> None:
    """Actor, critic and reference live in one world in three layouts and disturb nobody."""
    folder, reference = models["llama_tied"]
    actor = create(job, model_spec("actor", folder, "d1t2p1"))
    critic = create(job, model_spec("critic", folder, "d2t1p1", head=Head.VALUE))
    frozen = create(job, model_spec("ref", folder, "d1t1p1", trains=False, first_device=0))
    batch = random_batch(6, seed=9)
    actor_result = train(job, actor, call_settings("ppo_actor"), [batch])
    train(job, critic, call_settings("ppo_critic"), [batch])
    found = infer(job, frozen, call_settings("logprobs"), batch)
    assert_allclose(
        found.fields["logprobs"].values, reference_logprobs(reference, batch, 1.0), atol=1e-4
    )
    assert actor_result.weight_version == 1
    assert job.all(2, "weight_version", "actor") == [1, 1]
    assert job.run(weights_of, [("ref",)] * 2)[1] == {}
