"""``realloc plan`` as people and programs meet it."""

import json
from pathlib import Path

import pytest

from realloc.client.cli import main
from realloc.client.plan_inputs import parse_cluster
from realloc.core.errors import InvalidInput

EXAMPLES = Path(__file__).parents[3] / "examples"
CONFIG = json.loads((EXAMPLES / "models/llama-8b/config.json").read_text())


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """PPO of a small model, as a file."""
    small = CONFIG | {"num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(small | {"head_dim": 32}))
    path = tmp_path / "ppo.yaml"
    path.write_text(
        f"""name: small
algorithm: ppo
iterations: 1
actor: {{checkpoint: {tmp_path}}}
data: {{path: {tmp_path}/prompts.jsonl, batch_size: 32}}
dtype: bfloat16
"""
    )
    return path


def run(experiment: Path, *options: str, cluster: str = "1xH100:2") -> int:
    return main(["plan", str(experiment), "--cluster", cluster, "--seconds", "0.3", *options])


def test_a_plan_is_printed_whole(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, timeline, memory, bound and gain."""
    assert run(experiment) == 0
    text = capsys.readouterr().out
    for part in ("lower bound", "more iterations per hour", "actor_gen", "critic_train"):
        assert part in text
    assert "Predicted timeline" in text
    assert "Memory per device, of 74.5 GiB" in text
    assert "prompts of 512 tokens (assumed" in text


def test_programs_get_json(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the plan, its bound and its timeline."""
    assert run(experiment, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["lower_bound"] <= plan["seconds"] <= plan["heuristic_seconds"]
    assert plan["placements"][0]["call"] == "actor_gen"
    assert max(plan["device_peak_bytes"]) <= plan["cluster"]["usable_bytes"]


def test_trace_and_page_are_written(experiment: Path, tmp_path: Path) -> None:
    """A trace with a bar per device and work; a page that loads nothing."""
    trace, page = tmp_path / "plan.json", tmp_path / "plan.html"
    assert run(experiment, "--trace", str(trace), "--html", str(page)) == 0
    bars = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {bar["tid"] for bar in bars} == {0, 1}
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text


def test_a_front_is_a_line_per_plan(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From cheap to fast; the page draws it; programs get every plan."""
    page = tmp_path / "plan.html"
    assert run(experiment, "--pareto", "--html", str(page)) == 0
    assert "device-s per sample" in capsys.readouterr().out
    assert "What more devices buy" in page.read_text()
    assert run(experiment, "--pareto", "--json") == 0
    points = json.loads(capsys.readouterr().out)
    costs = [point["device_seconds_per_sample"] for point in points]
    assert costs == sorted(costs)
    assert run(experiment, "--objective", "cost", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_devices"] == points[0]["num_devices"]


def test_the_command_line_overrides_the_file(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pin given there replaces the experiment's; a setting likewise; others stay."""
    text = 'pins: {actor_gen: "@0", ref_inf: d1t2p1}\nplacement: {max_tensor: 2, headroom: 0.9}\n'
    experiment.write_text(experiment.read_text() + text)
    assert run(experiment, "--pin", "actor_gen=@1", "--headroom", "0", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    places = {each["call"]: each for each in plan["placements"]}
    assert (places["actor_gen"]["first_device"], places["actor_gen"]["num_devices"]) == (1, 1)
    assert places["ref_inf"]["strategy"] == "d1t2p1"
    assert plan["cluster"]["usable_bytes"] == 77 * 10**9


def test_unlike_nodes_are_planned_together(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its own memory."""
    assert run(experiment, "--json", cluster="1xH100:2+1xL40S:2") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cluster"]["device_kind"] == "H100+L40S"
    assert max(plan["device_peak_bytes"][2:], default=0) <= 45 * 10**9


def test_each_call_is_explained(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per call, with its runner-up."""
    arguments = ["plan", "explain", str(experiment), "--cluster", "1xH100:2", "--seconds", "0.3"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("runner-up" in line or "no other option" in line for line in lines)


def test_text_length_is_estimated_from_data(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four characters make a token."""
    (experiment.parent / "prompts.jsonl").write_text(json.dumps({"prompt": "x" * 400}) + "\n")
    assert run(experiment) == 0
    assert "prompts of 100 tokens (estimated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        ("1xH900:2", (), "'H900' is unknown hardware; known: A100"),
        ("sixteen", (), "is not of the form 16xH100:8"),
        ("1xH100:2@9000", (), "9000 Gb/s per node; give 100 to 3200"),
        ("1xH100:3", (), "1, 2, 4, … 64 devices"),
        ("1xH100:2", ("--avoid", "0"), "leaves no node"),
        ("1xH100:2", ("--response-tokens", "900"), "must lie between 1 and max_new_tokens, 128"),
        ("1xH100:2", ("--prompt-tokens", "0"), "must be at least 1"),
        ("1xH100:2", ("--seconds", "0"), "give 0 to 3600"),
        ("1xH100:2+1xL40S:4", (), "all need the same number"),
        ("1xH100:2", ("--pin", "actor_gen"), "is not of the form actor_gen=d2t4p1@0-7"),
        ("1xH100:2", ("--pin", "actor_gen=@1-0"), "ends before it begins"),
        ("1xH100:2", ("--pin", "actor_gen=d4t1p1"), "no mesh of the 4 devices of d4t1p1"),
        ("1xH100:2", ("--pin", "nobody=@0"), "is no call of the graph"),
        ("1xH100:2", ("--pin", "ref_inf=d1t2p1", "--max-tensor", "1"), "the most allowed is 1"),
        ("1xH100:2", ("--headroom", "1.5"), "give a share from 0 to below 1"),
        ("1xH100:2", ("--profile", "nowhere.json"), "nowhere.json cannot be read"),
    ],
)
def test_wrong_inputs_are_one_clear_message(
    experiment: Path,
    capsys: pytest.CaptureFixture[str],
    cluster: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    """Status 1, one line, no traceback."""
    assert run(experiment, *options, cluster=cluster) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_missing_configuration_is_named(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path that was looked at."""
    (experiment.parent / "config.json").unlink()
    assert run(experiment) == 1
    assert "actor.checkpoint" in capsys.readouterr().err


def test_clusters_have_networks_of_their_kind() -> None:
    """3,200 Gb/s per H100 node unless said otherwise."""
    usual, slow = parse_cluster("4xh100"), parse_cluster("4xH100:8@400")
    assert usual.cluster.devices_per_node == 8
    assert usual.hardware.network.bytes_per_second == 8 * slow.hardware.network.bytes_per_second
    with pytest.raises(InvalidInput):
        parse_cluster("0xH100:8")
