"""The Grafana dashboard, made from the names of the metrics.

python -m deploy.observability.dashboard           # writes dashboard.json
python -m deploy.observability.dashboard --check   # fails where it is out of date
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.prometheus import label_name, series_names

FILE = Path(__file__).resolve().parent / "dashboard.json"

SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
"""Of a panel in Grafana's grid of 24 columns, and panels per row."""

JOB = label_name(Attribute.JOB_ID)
CALL = label_name(Attribute.CALL)
MODEL = label_name(Attribute.MODEL_ID)
OF_JOB = f'{{{JOB}=~"$job"}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One line, or one per value of its labels."""

    text: str
    """PromQL."""
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A graph over time."""

    title: str
    unit: str
    """Grafana's name of it."""
    queries: Sequence[Query]
    about: str


def mean(metric: Metric, by: str, selector: str = "") -> str:
    """Mean of a histogram over the last minutes, by a label."""
    _, total, count = series_names(metric)
    window = "[$__rate_interval]"
    return (
        f"sum by ({by}) (rate({total}{selector}{window}))"
        f" / sum by ({by}) (rate({count}{selector}{window}))"
    )


def rate(metric: Metric, by: str, selector: str = "") -> str:
    """Increase per second of a counter, by a label."""
    (total,) = series_names(metric)
    return f"sum by ({by}) (rate({total}{selector}[$__rate_interval]))"


def now(metric: Metric, by: str, selector: str = "") -> str:
    """The present value of a gauge, by labels; two schedulers that see the same count once."""
    (name,) = series_names(metric)
    return f"max by ({by}) ({name}{selector})"


PANELS = (
    Panel(
        title="Stages: measured and predicted",
        unit="s",
        queries=(
            Query(text=mean(Metric.CALL_SECONDS, CALL, OF_JOB), legend=f"{{{{{CALL}}}}}"),
            Query(
                text=mean(Metric.CALL_PREDICTED_SECONDS, CALL, OF_JOB),
                legend=f"{{{{{CALL}}}}} (predicted)",
            ),
        ),
        about="Seconds of each function call, and what the cost model expected of it.",
    ),
    Panel(
        title="Iteration",
        unit="s",
        queries=(
            Query(text=mean(Metric.ITERATION_SECONDS, JOB, OF_JOB), legend=f"{{{{{JOB}}}}}"),
            Query(
                text=now(Metric.JOB_IDLE_SECONDS, JOB, OF_JOB),
                legend=f"{{{{{JOB}}}}}: not moved for",
            ),
        ),
        about="Seconds of an iteration, and since the last one ended.",
    ),
    Panel(
        title="Tokens per second",
        unit="short",
        queries=(Query(text=rate(Metric.TOKENS, CALL), legend=f"{{{{{CALL}}}}}"),),
        about="Tokens that the calls of all jobs processed.",
    ),
    Panel(
        title="Reallocation bandwidth",
        unit="Bps",
        queries=(
            Query(text=mean(Metric.REALLOCATION_BANDWIDTH, MODEL), legend=f"{{{{{MODEL}}}}}"),
        ),
        about="Bytes written at all destinations over the seconds of the transfer.",
    ),
    Panel(
        title="Reallocation: bytes over the lower bound",
        unit="short",
        queries=(
            Query(text=mean(Metric.REALLOCATION_BOUND_RATIO, MODEL), legend=f"{{{{{MODEL}}}}}"),
        ),
        about="Bytes that crossed devices over the least that any plan must move; 1 is the best.",
    ),
    Panel(
        title="Reallocation: phases",
        unit="s",
        queries=(
            Query(
                text=mean(Metric.REALLOCATION_PHASE_SECONDS, label_name(Attribute.PHASE)),
                legend=f"{{{{{label_name(Attribute.PHASE)}}}}}",
            ),
            Query(text=mean(Metric.REALLOCATION_SECONDS, MODEL), legend=f"{{{{{MODEL}}}}}, in all"),
        ),
        about="Where the seconds of a reallocation go.",
    ),
    Panel(
        title="Reallocated bytes",
        unit="Bps",
        queries=(
            Query(
                text=rate(Metric.REALLOCATED_BYTES, label_name(Attribute.BYTES_KIND)),
                legend=f"{{{{{label_name(Attribute.BYTES_KIND)}}}}}",
            ),
        ),
        about="What stays on its device, crosses devices in a node, and crosses nodes.",
    ),
    Panel(
        title="Reallocations",
        unit="short",
        queries=(
            Query(
                text=rate(Metric.REALLOCATIONS, label_name(Attribute.OUTCOME)),
                legend=f"{{{{{label_name(Attribute.OUTCOME)}}}}} per second",
            ),
            Query(text=now(Metric.WEIGHT_VERSION, MODEL), legend=f"version of {{{{{MODEL}}}}}"),
        ),
        about="How many were committed and aborted, and which version is served.",
    ),
    Panel(
        title="Log-probability mismatch",
        unit="short",
        queries=(Query(text=now(Metric.LOGPROB_DIFFERENCE, JOB, OF_JOB), legend=f"{{{{{JOB}}}}}"),),
        about="Largest |log-probability of the trainer − of the generator| of a sampled token, in "
        "nats. A jump means that the engines disagree about the weights.",
    ),
    Panel(
        title="Device busy share",
        unit="percentunit",
        queries=(Query(text=rate(Metric.DEVICE_BUSY_SECONDS, "instance"), legend="{{instance}}"),),
        about="Share of the time in which a shard runs function calls. A trainer and a generator "
        "of one device take turns: together they stay below 1.",
    ),
    Panel(
        title="Reward and KL",
        unit="short",
        queries=(
            Query(text=now(Metric.REWARD, JOB, OF_JOB), legend=f"reward {{{{{JOB}}}}}"),
            Query(text=now(Metric.KL, JOB, OF_JOB), legend=f"KL {{{{{JOB}}}}}"),
        ),
        about="Mean reward, and mean KL to the reference per sequence in nats.",
    ),
    Panel(
        title="Loss and gradient norm",
        unit="short",
        queries=(
            Query(text=now(Metric.LOSS, f"{JOB}, {MODEL}", OF_JOB), legend=f"loss {{{{{MODEL}}}}}"),
            Query(
                text=now(Metric.GRAD_NORM, f"{JOB}, {MODEL}", OF_JOB),
                legend=f"gradient norm {{{{{MODEL}}}}}",
            ),
        ),
        about="Of each trained model.",
    ),
    Panel(
        title="Members",
        unit="short",
        queries=(
            Query(
                text=now(Metric.MEMBERS, label_name(Attribute.MEMBER_KIND)),
                legend=f"{{{{{label_name(Attribute.MEMBER_KIND)}}}}}",
            ),
            Query(
                text=now(Metric.DEVICES, label_name(Attribute.DEVICE_KIND)),
                legend=f"devices ({{{{{label_name(Attribute.DEVICE_KIND)}}}}})",
            ),
        ),
        about="Registered processes; there should be a trainer per device.",
    ),
    Panel(
        title="Checkpoints",
        unit="s",
        queries=(
            Query(text=mean(Metric.CHECKPOINT_SNAPSHOT_SECONDS, "job"), legend="the job waits"),
            Query(text=mean(Metric.CHECKPOINT_SECONDS, "job"), legend="written behind it"),
        ),
        about="Seconds of the copy to host memory, and of writing it while iterations go on.",
    ),
    Panel(
        title="Checkpoint bytes",
        unit="Bps",
        queries=(Query(text=rate(Metric.CHECKPOINT_BYTES, "job"), legend="saved"),),
        about="Bytes per second that go to the checkpoint folder.",
    ),
    Panel(
        title="Jobs ended, plan searches",
        unit="short",
        queries=(
            Query(
                text=rate(Metric.JOBS_ENDED, label_name(Attribute.OUTCOME)),
                legend=f"{{{{{label_name(Attribute.OUTCOME)}}}}} per second",
            ),
            Query(text=rate(Metric.RECOVERIES, "job"), legend="lost shards survived per second"),
            Query(text=mean(Metric.SEARCH_SECONDS, "job"), legend="seconds of a plan search"),
        ),
        about="Jobs by outcome, recoveries of jobs that lost a shard, and how long plans took.",
    ),
    Panel(
        title="Remote calls",
        unit="s",
        queries=(
            Query(
                text="histogram_quantile(0.99, sum by (le, job) "
                f"(rate({series_names(Metric.RPC_SECONDS)[0]}[$__rate_interval])))",
                legend="{{job}}, 99th percentile",
            ),
        ),
        about="Seconds of the calls that each kind of service answers.",
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole as Grafana reads it."""
    return {
        "uid": "realloc",
        "title": "Realloc",
        "tags": ["realloc"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_job_variable()]},
        "panels": [_panel(index, panel) for index, panel in enumerate(PANELS)],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def _job_variable() -> dict[str, Any]:
    query = f"label_values({series_names(Metric.ITERATION_SECONDS)[2]}, {JOB})"
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "job"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(index, COLUMNS)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": query.text, "legendFormat": query.legend}
            for n, query in enumerate(panel.queries)
        ],
    }


def main() -> int:
    if "--check" in sys.argv[1:]:
        if FILE.exists() and FILE.read_text() == text():
            return 0
        print(f"{FILE} is out of date: python -m deploy.observability.dashboard", file=sys.stderr)
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
