"""A real vLLM engine in a process of its own, and Hugging Face as the judge."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.layout import Layout, LayoutKind
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.layouts.provider import local_parameters
from tests.support import vllm_process
from tests.support.rank_processes import RankProcesses
from tests.support.vllm_cluster import (
    GENERATION,
    LOAD_SECONDS,
    TRAINER,
    Checkpoint,
    Cluster,
    generate,
    hf_logprobs,
    load,
    plan,
    reallocate,
    request,
    requests,
    session,
    stage,
    worst_difference,
)
from tests.tiny_models import tiny_config, tiny_hf_model


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Both processes, started once."""
    processes = RankProcesses(2)
    try:
        processes.start_one(TRAINER, vllm_process.serve_store, ())
        [store] = processes.results([TRAINER], timeout_seconds=60)
        yield Cluster(processes=processes, store=store)
    finally:
        processes.close()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Tiny models of all dense families: llama in two versions, and tied; qwen2 has biases."""
    made = {}
    for name, family, seed, changes in (
        ("llama", "llama", 1, {}),
        ("llama-next", "llama", 2, {}),
        ("llama-tied", "llama", 3, {"tie_word_embeddings": True}),
        ("qwen2", "qwen2", 4, {}),
        ("qwen3", "qwen3", 5, {}),
        ("gemma2", "gemma2", 6, {}),
        ("gemma3_text", "gemma3_text", 7, {}),
        ("mistral", "mistral", 8, {}),
    ):
        folder = tmp_path_factory.mktemp("models") / name
        model = tiny_hf_model(family, seed, folder, **changes)
        made[name] = Checkpoint(folder=folder, model=model)
    return made


def vllm_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """A llama's weights by vLLM name, fused by hand: written apart from the layout tables."""
    source = {name: tensor.numpy() for name, tensor in checkpoint.model.state_dict().items()}
    made: dict[str, Any] = {}
    for name, tensor in source.items():
        for whole, parts in (("qkv_proj", "qkv"), ("gate_up_proj", ("gate", "up"))):
            first = f".{parts[0]}_proj."
            if first in name:
                pieces = [source[name.replace(first, f".{part}_proj.")] for part in parts]
                made[name.replace(first, f".{whole}.")] = torch.cat(
                    [torch.from_numpy(piece) for piece in pieces]
                ).numpy()
                break
        else:
            if not any(f".{part}_proj." in name for part in ("k", "v", "up")):
                made[name] = tensor
    return made


def test_parameters_written_in_place_are_what_vllm_computes_with(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Direct writes into the live parameters change the logits to Hugging Face's, to 1e-4."""
    for version, name in enumerate(("llama", "llama-next"), 1):
        load(cluster, checkpoints["llama"].spec)
        cluster.on(GENERATION, vllm_process.write, vllm_parameters(checkpoints[name]), version)
        rollouts = generate(cluster, requests())
        assert worst_difference(checkpoints[name].model, requests(), rollouts) < 1e-4
        assert {rollout.weight_version for rollout in rollouts.values()} == {version}


def test_shapes_are_those_of_the_layout_table(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """The engine's parameters are exactly those that transfers are planned for."""
    load(cluster, checkpoints["llama"].spec)
    layout = Layout(kind=LayoutKind.VLLM, strategy=ParallelStrategy(), devices=(0,))
    table = local_parameters(checkpoints["llama"].architecture, layout, 0)
    assert cluster.on(GENERATION, vllm_process.shapes) == [
        {parameter.name: parameter.shape for parameter in table.parameters}
    ]


def test_reallocated_weights_are_live_only_after_the_commit(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Stage changes nothing, commit everything, abort nothing; versions follow."""
    old, new = checkpoints["llama"], checkpoints["llama-next"]
    load(cluster, old.spec)
    reallocate(cluster, old, version=1, group="commit")
    before = generate(cluster, requests())
    assert worst_difference(old.model, requests(), before) < 1e-4
    stage(cluster, new, group="commit")
    assert generate(cluster, requests()) == before
    cluster.on(GENERATION, vllm_process.abort_weights)
    assert generate(cluster, requests()) == before
    reallocate(cluster, new, version=2, group="commit")
    after = generate(cluster, requests())
    assert worst_difference(new.model, requests(), after) < 1e-4
    assert {rollout.weight_version for rollout in after.values()} == {2}


def test_a_transfer_whose_source_is_missing_changes_nothing(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """The wait ends by its deadline, the engine serves on, the next transfer works."""
    old, new = checkpoints["llama"], checkpoints["llama-next"]
    load(cluster, old.spec)
    reallocate(cluster, old, version=5, group="before-failure")
    before = generate(cluster, requests())
    transfer = plan(new)
    meeting = session(cluster, transfer, group="failure", timeout_seconds=2.0)
    with pytest.raises(Unavailable):
        cluster.on(GENERATION, vllm_process.stage, meeting, list(transfer.programs[1:]))
    assert generate(cluster, requests()) == before
    reallocate(cluster, new, version=6, group="after-failure")
    assert worst_difference(new.model, requests(), generate(cluster, requests())) < 1e-4


@pytest.mark.parametrize(
    "name", ["llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "llama"]
)
def test_another_architecture_takes_the_place_of_the_one_before(
    cluster: Cluster, checkpoints: dict[str, Checkpoint], name: str
) -> None:
    """Tied embeddings, biases, query norms, soft caps: logprobs are Hugging Face's, to 1e-4."""
    checkpoint = checkpoints[name]
    load(cluster, checkpoint.spec)
    reallocate(cluster, checkpoint, version=3, group=f"family-{name}")
    rollouts = generate(cluster, requests())
    assert worst_difference(checkpoint.model, requests(), rollouts) < 1e-4


def test_an_equal_spec_keeps_engine_and_weights(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Loading again what is loaded is free of charge."""
    load(cluster, checkpoints["llama"].spec)
    reallocate(cluster, checkpoints["llama"], version=1, group="equal")
    before = generate(cluster, requests())
    load(cluster, checkpoints["llama"].spec)
    assert generate(cluster, requests()) == before


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Alone or among others the tokens are the same; another seed gives others."""
    load(cluster, checkpoints["llama"].spec)
    reallocate(cluster, checkpoints["llama"], version=1, group="seeds")
    together = generate(cluster, requests())
    for one in requests():
        alone = generate(cluster, [one])[one.request_id]
        assert alone.tokens == together[one.request_id].tokens
        assert alone.logprobs == pytest.approx(together[one.request_id].logprobs, abs=1e-4)
    again = generate(cluster, [request("again", [1, 2, 3], seed=8)])["again"]
    assert again.tokens != generate(cluster, [request("again", [1, 2, 3])])["again"].tokens


def test_greedy_rollouts_take_the_likeliest_token(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Temperature 0 among other temperatures is Hugging Face's argmax."""
    checkpoint = checkpoints["llama"]
    load(cluster, checkpoint.spec)
    reallocate(cluster, checkpoint, version=1, group="greedy")
    greedy = request("greedy", [5, 6, 7], temperature=0.0)
    rollout = generate(cluster, [greedy, *requests(2)])["greedy"]
    with torch.no_grad():
        tokens = torch.tensor([[5, 6, 7, *rollout.tokens]])
        logits = checkpoint.model(tokens).logits[0, 2:-1]
    assert tuple(logits.argmax(-1).tolist()) == rollout.tokens
    expected = torch.log_softmax(logits, -1).max(-1).values
    assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_stop_token_ends_a_rollout_and_belongs_to_it(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """The same sample is cut right after the first stop token; others are cut by length."""
    load(cluster, checkpoints["llama"].spec)
    reallocate(cluster, checkpoints["llama"], version=1, group="stop")
    free = generate(cluster, [request("free", [1, 2, 3])])["free"]
    assert (free.finish_reason, len(free.tokens)) == ("length", 16)
    stop = free.tokens[5]
    cut = generate(cluster, [request("cut", [1, 2, 3], stop_token_ids=(stop,))])["cut"]
    assert cut.finish_reason == "stop"
    assert cut.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_aborted_requests_never_end_and_disturb_nobody(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """The other requests give the same tokens as without the aborted ones."""
    load(cluster, checkpoints["llama"].spec)
    reallocate(cluster, checkpoints["llama"], version=1, group="abort")
    kept = [one for i, one in enumerate(requests()) if i % 2]
    alone = generate(cluster, kept)
    cluster.on(GENERATION, vllm_process.add, requests(), 4)
    aborted = [one.request_id for one in requests() if one not in kept]
    cluster.on(GENERATION, vllm_process.abort, [*aborted, "unknown"])
    rest = cluster.on(GENERATION, vllm_process.finish, len(kept))
    assert {name: one.tokens for name, one in rest.items()} == {
        name: one.tokens for name, one in alone.items()
    }


def test_running_requests_go_on_with_new_weights(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """A commit between two tokens: logprobs before are the old model's, after it the new one's."""
    old, new = checkpoints["llama"], checkpoints["llama-next"]
    load(cluster, old.spec)
    reallocate(cluster, old, version=1, group="running")
    asked = [replace(one, max_new_tokens=24) for one in requests(3)]
    cluster.on(GENERATION, vllm_process.add, asked, 10)
    reallocate(cluster, new, version=2, group="running")
    rollouts = cluster.on(GENERATION, vllm_process.finish, len(asked))
    for one in asked:
        rollout = rollouts[one.request_id]
        logprobs = torch.tensor(rollout.logprobs)
        wrong_old = (hf_logprobs(old.model, one, rollout) - logprobs).abs() > 1e-4
        wrong_new = (hf_logprobs(new.model, one, rollout) - logprobs).abs() > 1e-4
        switch = int(wrong_old.int().argmax())
        assert 8 <= switch <= 10
        assert not wrong_old[:switch].any()
        assert not wrong_new[switch:].any()
        assert rollout.weight_version == 1


def test_wrong_requests_are_all_named_and_none_begins(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Each problem has the path of its field."""
    load(cluster, checkpoints["llama"].spec)
    wrong = [
        request("good", [1]),
        request("empty", []),
        request("unknown", [1, 259]),
        request("long", [1] * 250),
        request("cold", [1], temperature=-1.0),
    ]
    with pytest.raises(InvalidInput) as caught:
        generate(cluster, wrong)
    assert [problem.path for problem in caught.value.problems] == [
        "requests[1].prompt_tokens",
        "requests[2].prompt_tokens",
        "requests[3].max_new_tokens",
        "requests[4].temperature",
    ]
    assert cluster.on(GENERATION, vllm_process.add, [], 1) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_config": "{"}, "hf_config: is not JSON"),
        ({"hf_config": "{}"}, "hf_config: names no architectures"),
        (
            {"hf_config": json.dumps(tiny_config("llama", head_dim=16))},
            "head_dim: is 16; vLLM's CPU",
        ),
        ({"hf_config": json.dumps(tiny_config("mixtral"))}, "num_experts: is 4; vLLM packs"),
        ({"dtype": "int8"}, "dtype: is 'int8'; use float32 or bfloat16"),
        ({"tensor_parallel": 0, "max_model_len": -1}, "tensor_parallel.*max_model_len"),
        (
            {"hf_config": json.dumps(tiny_config("llama") | {"architectures": ["NoSuchModel"]})},
            "vLLM cannot build this model",
        ),
    ],
)
def test_a_wrong_spec_is_refused_and_a_right_one_loads_after_it(
    cluster: Cluster, checkpoints: dict[str, Checkpoint], changes: dict[str, Any], message: str
) -> None:
    """One clear error; the process stays usable."""
    with pytest.raises(InvalidInput, match=message):
        load(cluster, replace(checkpoints["llama"].spec, **changes))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_two_tensor_parallel_ranks_take_new_weights(
    cluster: Cluster, checkpoints: dict[str, Checkpoint], name: str
) -> None:
    """Each worker process receives its own slices; logprobs are Hugging Face's, to 1e-4."""
    checkpoint = checkpoints[name]
    load(cluster, replace(checkpoint.spec, tensor_parallel=2))
    reallocate(cluster, checkpoint, version=4, group=f"tp2-{name}", tensor_parallel=2)
    rollouts = generate(cluster, requests())
    assert worst_difference(checkpoint.model, requests(), rollouts) < 1e-4


def test_the_worker_runs_the_engine_from_load_to_close(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """All rollouts arrive through the event loop, and the counters count them."""
    load(cluster, checkpoints["llama"].spec)
    rollouts, counters = cluster.on(
        GENERATION,
        vllm_process.generate_through_worker,
        checkpoints["llama"].spec,
        requests(),
        timeout_seconds=LOAD_SECONDS,
    )
    assert {name: len(one.tokens) for name, one in rollouts.items()} == {
        one.request_id: one.max_new_tokens for one in requests()
    }
    assert counters.num_rollouts == len(rollouts)
    assert counters.response_tokens == sum(one.max_new_tokens for one in requests())


def test_rebuilding_the_engine_leaks_no_memory_and_stays_right(
    cluster: Cluster, checkpoints: dict[str, Checkpoint]
) -> None:
    """Job after job with another model: memory stays, logprobs stay Hugging Face's."""
    memory = []
    for turn, name in enumerate(("llama", "qwen2", "llama", "qwen2")):
        checkpoint = checkpoints[name]
        memory.append(load(cluster, checkpoint.spec))
        reallocate(cluster, checkpoint, version=turn, group=f"turn-{turn}")
        rollouts = generate(cluster, requests(3))
        assert worst_difference(checkpoint.model, requests(3), rollouts) < 1e-4
    print("MiB after each load:", [round(one) for one in memory])
    assert max(memory[2:]) - memory[1] < 100
