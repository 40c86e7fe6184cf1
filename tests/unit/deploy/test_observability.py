"""What people look at: dashboard, alerts and collector, against what services send."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.kubernetes.manifests import OVERLAYS, parse, render
from deploy.observability import dashboard
from deploy.observability.promtool import find_promtool
from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.prometheus import RESOURCE_LABELS, label_name, series_names

FOLDER = Path(dashboard.__file__).resolve().parent
ALERTS = FOLDER / "alerts.yaml"

SERIES = {name for metric in Metric for name in series_names(metric)}
LABELS = {label_name(attribute) for attribute in Attribute} | {*RESOURCE_LABELS, "le"}

needs_promtool = pytest.mark.skipif(
    find_promtool() is None, reason="no promtool here: tools/fetch_promtool.py fetches one"
)


def promtool(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run it, and show what it said where it fails."""
    return subprocess.run(
        [str(find_promtool()), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def queries() -> list[str]:
    """All PromQL of the dashboard and the alerts."""
    panels = dashboard.dashboard()["panels"]
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return [
        *(target["expr"] for panel in panels for target in panel["targets"]),
        *(rule["expr"] for rule in rules),
    ]


def names_in(query: str) -> set[str]:
    """Series and labels that a query names: words that are no functions, keywords or values."""
    bare = re.sub(r'"[^"]*"|\$\w+|\[[^]]*\]', "", query)
    words = set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare))
    return words - {"by", "on", "sum", "max", "unless", "rate", "absent", "group_left", "increase"}


def test_dashboard_and_alerts_name_what_exists():
    """Every series and label of every query is one that services send."""
    for query in queries():
        assert names_in(query) <= SERIES | LABELS, query


def test_a_name_that_nobody_sends_is_found():
    """The check sees a misspelt series and a misspelt label."""
    assert "realloc_tokenz_total" in names_in(
        "sum by (realloc_call) (rate(realloc_tokenz_total[5m]))"
    )
    assert not names_in("sum by (realloc_cal) (rate(realloc_tokens_total[5m]))") <= SERIES | LABELS


def test_the_dashboard_shows_every_metric():
    """No metric is sent for nothing: each is in some panel."""
    shown = set().union(*map(names_in, queries()))
    missing = [metric for metric in Metric if not shown & set(series_names(metric))]
    assert missing == []


def test_the_dashboard_is_fresh():
    """The file is what the code makes, and panels do not overlap."""
    assert (FOLDER / "dashboard.json").read_text() == dashboard.text()
    panels = json.loads(dashboard.text())["panels"]
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels]
    assert len(set(places)) == len(panels)
    assert max(x for x, _ in places) + dashboard.WIDTH <= 24


@needs_promtool
def test_alerts_fire_when_they_should():
    """Prometheus' own unit tests of the rules pass: a stalled job, a lost shard, no scheduler,
    aborted reallocations, and none of them where all is well."""
    for arguments in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert promtool("check", "config", "prometheus.yaml").returncode == 0


@needs_promtool
def test_an_alert_with_a_wrong_threshold_fails_its_tests(tmp_path):
    """The unit tests of the alerts notice a change of their meaning."""
    (tmp_path / "alerts_test.yaml").write_text((FOLDER / "alerts_test.yaml").read_text())
    for before, after in (("> 600", "> 6000"), ("<= 5 *", "<= 500 *"), ("for: 2m", "for: 20m")):
        text = ALERTS.read_text()
        assert before in text
        (tmp_path / "alerts.yaml").write_text(text.replace(before, after))
        assert promtool("test", "rules", "alerts_test.yaml", cwd=tmp_path).returncode != 0


@needs_promtool
def test_queries_are_promql(tmp_path):
    """Prometheus parses every query of the dashboard."""
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__rate_interval", "5m", query)}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_collector_prometheus_and_services_agree_on_addresses():
    """Services send where the collector listens, Prometheus scrapes what it exposes, and both
    addresses are those of Kubernetes' services."""
    collector = yaml.safe_load((FOLDER / "collector.yaml").read_text())
    listens = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    exposes = collector["exporters"]["prometheus"]["endpoint"]
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]
    (target,) = scrape["static_configs"][0]["targets"]
    objects = parse(render(OVERLAYS / "cpu"))
    ports = {
        f"{each['metadata']['name']}.realloc.svc:{port['port']}"
        for each in objects
        if each["kind"] == "Service" and "ports" in each["spec"]
        for port in each["spec"]["ports"]
    }
    assert target in ports
    assert target.rpartition(":")[2] == exposes.rpartition(":")[2]
    assert collector["exporters"]["otlp/tempo"]["endpoint"] in ports
    config = next(
        each
        for each in objects
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("config-")
    )
    for text in config["data"].values():
        endpoint = yaml.safe_load(text)["otlp_endpoint"].removeprefix("http://")
        assert endpoint in ports
        assert endpoint.rpartition(":")[2] == listens.rpartition(":")[2]
    assert scrape["honor_labels"] is True
