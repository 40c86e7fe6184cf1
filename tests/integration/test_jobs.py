"""Jobs on a real cluster: etcd, five services, Megatron-core, vLLM, weights moved between them."""

import itertools
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from realloc.client.client import Client, JobHandle
from realloc.core.errors import InvalidInput, JobFailed, NotFound
from realloc.core.experiment import Experiment
from realloc.core.job import IterationReport, Job, JobState
from realloc.telemetry.names import Metric, Span
from tests.support.running_cluster import RunningCluster, experiment

JOB_SECONDS = 120.0


def run(client: Client, work: Experiment) -> tuple[Job, tuple[IterationReport, ...]]:
    job = client.submit(work)
    return job.wait(), job.reports()


@pytest.fixture(scope="module")
def ppo(cluster: RunningCluster) -> tuple[Job, tuple[IterationReport, ...]]:
    """A PPO job whose training (TP2) and generation (two TP1 replicas) layouts differ."""
    with cluster.client() as client:
        return run(client, experiment(cluster.folder, "ppo", output=str(cluster.folder / "out")))


def test_ppo_runs_with_differing_layouts(ppo: tuple[Job, tuple[IterationReport, ...]]) -> None:
    """Every iteration trains both models, and new weights reach generation with equal digests."""
    job, reports = ppo
    assert job.state is JobState.SUCCEEDED
    assert [report.weight_version for report in reports] == [2, 4]
    assert job.plan is not None
    assert str(job.plan.placement("actor_train").strategy) == "d1t2p1"
    assert str(job.plan.placement("actor_gen").strategy) == "d2t1p1"
    moves = [move for report in reports for move in report.reallocations]
    assert [move.weight_version for move in moves] == [2]
    assert all(move.digest_ok and move.bytes > 0 for move in moves)
    assert {"actor_gen", "ref_inf", "critic_inf", "actor_train", "critic_train"} <= {
        stage.name for stage in reports[0].stages
    }


def test_train_and_rollout_logprobs_agree_in_every_iteration(
    ppo: tuple[Job, tuple[IterationReport, ...]],
) -> None:
    """vLLM's log-probabilities of its samples are the trainer's to 1e-4, also after moves."""
    _, reports = ppo
    for report in reports:
        assert report.metrics["train_rollout_logprob_abs_diff_max"] < 1e-4


def test_the_first_step_has_no_kl_to_its_own_reference(
    ppo: tuple[Job, tuple[IterationReport, ...]],
) -> None:
    """The reference begins as the actor, so before any step their KL is 0."""
    _, reports = ppo
    assert abs(reports[0].metrics["actor/kl_to_ref"]) < 1e-4


def test_the_checkpoint_is_a_hugging_face_model(
    ppo: tuple[Job, tuple[IterationReport, ...]],
) -> None:
    """transformers loads what the job exported."""
    from transformers import AutoModelForCausalLM

    job, _ = ppo
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint)
    assert model.config.model_type == "llama"
    assert (Path(job.checkpoint) / "tokenizer.json").is_file()


def test_the_trace_shows_the_job_over_all_services(
    cluster: RunningCluster, ppo: tuple[Job, tuple[IterationReport, ...]]
) -> None:
    """One timeline holds job, iterations, calls on every shard and reallocation phases."""
    job, _ = ppo
    with cluster.client() as client:
        trace = json.loads(client.trace(job.job_id))
    names = {event["name"].split(" ")[0] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert {
        "job",
        "iteration",
        "function_call",
        "function_call.rank",
        "reallocation",
        "reallocation.transfer",
        "reallocation.commit",
    } <= names
    processes = {
        event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"
    }
    assert {"scheduler", "param_store", "trainer-0", "trainer-1", "generation-0"} <= processes


def test_every_metric_is_emitted(
    cluster: RunningCluster, ppo: tuple[Job, tuple[IterationReport, ...]]
) -> None:
    """After one PPO job the services have sent every metric and span, but for those of jobs that
    run, have checkpoints or recover, and of aborted reallocations."""
    assert ppo[0].state is JobState.SUCCEEDED
    traces = cluster.folder / "run" / "traces"
    rare = re.compile("checkpoint[._]|recoveries$|abort$|job.idle$")
    metrics = {str(metric) for metric in Metric if not rare.search(metric)}
    spans = {str(span) for span in Span if not rare.search(span)}
    deadline = time.monotonic() + JOB_SECONDS
    while (missing := (metrics | spans) - emitted(traces)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert missing == set()


def emitted(folder: Path) -> set[str]:
    """Names of the spans and metrics that processes have written so far."""
    text = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    return set(re.findall(r'"name": ?"([a-z_.]+)"', text))


def test_equal_seeds_give_equal_numbers(
    cluster: RunningCluster, ppo: tuple[Job, tuple[IterationReport, ...]]
) -> None:
    """The same experiment again repeats rewards and losses of every iteration."""
    _, before = ppo
    with cluster.client() as client:
        _, again = run(client, experiment(cluster.folder, "ppo"))
    for name in ("reward/mean", "actor/loss", "critic/loss", "actor/grad_norm"):
        assert [r.metrics[name] for r in again] == pytest.approx(
            [r.metrics[name] for r in before], abs=1e-6
        )


def test_generation_on_devices_of_its_own(cluster: RunningCluster) -> None:
    """Training on device 0 and generation on device 1 give the same first iteration."""
    pins = {
        "actor_train": "d1t1p1@0",
        "critic_train": "d1t1p1@0",
        "ref_inf": "d1t1p1@0",
        "actor_gen": "d1t1p1@1",
    }
    with cluster.client() as client:
        _, apart = run(client, experiment(cluster.folder, "ppo", pins=pins, iterations=2))
        _, together = run(client, experiment(cluster.folder, "ppo", iterations=1))
    assert apart[1].reallocations[0].digest_ok
    for name in ("reward/mean", "actor/loss", "critic/loss"):
        assert apart[0].metrics[name] == pytest.approx(together[0].metrics[name], abs=1e-5)


def test_without_pins_the_search_places_every_call(cluster: RunningCluster) -> None:
    """What plan-search chooses on its own can be run, and trains the same numbers."""
    with cluster.client() as client:
        job, free = run(client, experiment(cluster.folder, "ppo", pins={}))
        _, pinned = run(client, experiment(cluster.folder, "ppo", iterations=1))
    assert job.plan is not None
    assert {placement.call for placement in job.plan.placements} == {
        "actor_gen",
        "ref_inf",
        "critic_inf",
        "actor_train",
        "critic_train",
    }
    for name in ("reward/mean", "actor/loss", "critic/loss"):
        assert free[0].metrics[name] == pytest.approx(pinned[0].metrics[name], abs=1e-5)


def test_sft_lowers_the_loss(cluster: RunningCluster) -> None:
    """Supervised training on rows that the shards read themselves."""
    with cluster.client() as client:
        job, reports = run(client, experiment(cluster.folder, "sft", iterations=8))
    assert reports[-1].metrics["actor/loss"] < reports[0].metrics["actor/loss"]
    assert [evaluation.iteration for evaluation in job.evaluations] == [0, 8]


def test_a_repeated_request_is_one_job(cluster: RunningCluster) -> None:
    """The same request id never queues a second job."""
    with cluster.client() as client:
        work = experiment(cluster.folder, "sft", iterations=1)
        first = client.submit(work, request_id="one")
        second = client.submit(work, request_id="one")
        assert first.job_id == second.job_id
        first.wait()


def test_cancelling_frees_the_shards(cluster: RunningCluster) -> None:
    """A running job ends when cancelled, and the next one runs on the same devices."""
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "ppo", iterations=1000))
        for update in job.watch():
            if update.report is not None:
                job.cancel()
                break
        assert job.get().state is JobState.CANCELLED
        after, _ = run(client, experiment(cluster.folder, "sft", iterations=1))
        assert after.state is JobState.SUCCEEDED


def test_jobs_wait_for_their_devices(cluster: RunningCluster) -> None:
    """Jobs on the same devices run one after the other, in the order they came."""
    with cluster.client() as client:
        jobs = [
            client.submit(experiment(cluster.folder, "sft", iterations=count))
            for count in (3, 1, 1)
        ]
        ended = [job.wait() for job in jobs]
    for before, after in itertools.pairwise(ended):
        assert after.start_time >= before.end_time


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "no such answer"),
        ("endless", "1 s"),
    ],
)
def test_a_reward_function_that_fails_ends_its_job_only(
    cluster: RunningCluster, function: str, message: str
) -> None:
    """A reward that raises or never returns is one clear message; the cluster goes on."""
    reward = {"function": f"{cluster.folder / 'rewards.py'}:{function}", "timeout_seconds": 1}
    with cluster.client() as client:
        with pytest.raises(JobFailed, match=message):
            client.submit(experiment(cluster.folder, "ppo", reward=reward)).wait()
        assert run(client, experiment(cluster.folder, "sft", iterations=1))[0].checkpoint == ""


def problems_of(client: Client, work: Experiment) -> str:
    with pytest.raises(InvalidInput) as caught:
        client.submit(work)
    return "\n".join(map(str, caught.value.problems))


def test_wrong_values_are_named_all_at_once(cluster: RunningCluster) -> None:
    """Each problem comes with the path of its field, in one answer."""
    folder = cluster.folder
    work = experiment(
        folder,
        "ppo",
        iterations=-1,
        actor={"checkpoint": str(folder / "absent")},
        data={"path": str(folder / "train.jsonl"), "batch_size": -4},
        reward={"function": f"{folder / 'rewards.py'}:absent"},
        pins={"actor_gen": "d2t1p1@4-5"},
    )
    with cluster.client() as client:
        text = problems_of(client, work)
    for path in (
        "iterations",
        "actor.checkpoint",
        "data.batch_size",
        "reward.function",
        "pins[0].mesh",
    ):
        assert path in text


def test_an_unknown_algorithm_lists_the_known_ones(cluster: RunningCluster) -> None:
    """The message names what there is."""
    with cluster.client() as client:
        text = problems_of(client, experiment(cluster.folder, "alphazero"))
    assert "'alphazero' is unknown; known: ppo, sft" in text


def test_a_broken_line_is_named_with_its_file(cluster: RunningCluster) -> None:
    """File and line number lead to the row."""
    path = cluster.folder / "broken.jsonl"
    path.write_text('{"prompt": "1+1="}\n{"prompt": 3}\nnot json\n')
    with cluster.client() as client:
        text = problems_of(
            client, experiment(cluster.folder, "ppo", data={"path": str(path), "batch_size": 2})
        )
    assert "broken.jsonl:2" in text
    assert "broken.jsonl:3" in text


def test_a_plan_that_does_not_split_the_model_is_refused(cluster: RunningCluster) -> None:
    """Three ranks cannot share four heads; the job ends with that sentence."""
    pins = {"actor_train": "d1t1p2@0-1", "actor_gen": "d1t2p1@0-1", "ref_inf": "d1t1p2@0-1"}
    model = cluster.folder / "odd"
    model.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        text = (cluster.folder / "model" / name).read_text()
        (model / name).write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    actor: dict[str, Any] = {"checkpoint": str(model), "random_weights": True}
    with cluster.client() as client, pytest.raises(JobFailed, match="3 layers do not split"):
        client.submit(experiment(cluster.folder, "ppo", actor=actor, pins=pins)).wait()


def test_an_unknown_job_is_not_found(cluster: RunningCluster) -> None:
    """Every verb on a job that is not there says so."""
    with cluster.client() as client:
        for call in (client.job, client.cancel, client.trace, client.reports):
            with pytest.raises(NotFound):
                call("absent")


def test_two_watchers_see_the_same_reports(cluster: RunningCluster) -> None:
    """Whoever watches sees every iteration, also one who comes later."""
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "sft", iterations=4))
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.extend(iterations_of(job)))
        thread.start()
        job.wait()
        thread.join(JOB_SECONDS)
        assert seen == iterations_of(job) == [1, 2, 3, 4]


def iterations_of(job: JobHandle) -> list[int]:
    return [update.report.iteration for update in job.watch() if update.report is not None]


def test_listing_shows_the_newest_first(cluster: RunningCluster) -> None:
    """The job that was just submitted leads the list."""
    before = time.time()
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "sft", iterations=1))
        newest = next(client.jobs())
        job.wait()
    assert newest.job_id == job.job_id
    assert newest.submit_time >= before - 1
