"""The doctor on a real cluster: healthy first, then one broken thing at a time."""

import asyncio
import json
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from realloc.api.diagnostics.v1 import diagnostics_pb2 as pb
from realloc.api.diagnostics.v1 import diagnostics_pb2_grpc
from realloc.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from realloc.client.cli import main
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.membership import Member, Registration
from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.rpc.channel import connect_sync
from realloc.rpc.diagnostics import DiagnosticsServicer
from tests.support.running_cluster import RunningCluster, experiment

CAPTURE = pytest.CaptureFixture[str]


def examine(cluster: RunningCluster, capsys: CAPTURE, *options: str) -> dict[str, Any]:
    """What ``realloc doctor --json`` says; its exit status must agree."""
    capsys.readouterr()
    status = main(["doctor", "--json", "--etcd", cluster.endpoints["etcd"], *options])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (1 if report["status"] == "failed" else 0)
    return report


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["checks"] if each["name"] == name)
    return found


def test_nothing_fails_on_a_healthy_cluster(
    cluster: RunningCluster, capsys: CAPTURE, tmp_path: Path
) -> None:
    """All checks are made, and none fails; plan reads the links that were measured."""
    links = tmp_path / "links.json"
    report = examine(cluster, capsys, "--folder", str(tmp_path), "--links", str(links))
    failed = [each for each in report["checks"] if each["status"] == "failed"]
    assert not failed, failed
    assert {each["name"]: each["status"] for each in report["checks"]}.keys() == {
        "etcd", "membership", "versions", "clocks", "devices", "space", "folder", "links"
    }  # fmt: skip
    assert [each["devices"] for each in check(report, "links")["data"]["pairs"]] == [[0, 1]]
    assert not list(tmp_path.glob(".realloc*"))

    arguments = [
        "plan",
        "examples/ppo_8b.yaml",
        "--cluster",
        "1xH100:8",
        "--seconds",
        "1",
        "--json",
    ]
    plain, measured = (
        main_json(capsys, *arguments, *more) for more in ((), ("--links", str(links)))
    )
    assert measured["seconds"] > plain["seconds"]  # loopback is slower than NVLink


def main_json(capsys: CAPTURE, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_folder_that_is_not_there_is_found(cluster: RunningCluster, capsys: CAPTURE) -> None:
    """Every shard that lacks it is named."""
    report = examine(cluster, capsys, "--no-links", "--folder", "/nowhere")
    findings = check(report, "folder")["findings"]
    assert {each["subject"].split()[0] for each in findings} == {
        "trainer-0", "trainer-1", "generation-0", "generation-1"
    }  # fmt: skip
    assert all("/nowhere is not there" in each["problem"] for each in findings)


def test_a_hung_shard_is_named_in_time(cluster: RunningCluster, capsys: CAPTURE) -> None:
    """A process that is stopped gives no answer; the doctor does not wait for it."""
    cluster.kill("trainer-1", signal.SIGSTOP)
    try:
        report = examine(cluster, capsys, "--timeout", "2", "--no-links")
    finally:
        cluster.kill("trainer-1", signal.SIGCONT)
    (finding,) = check(report, "membership")["findings"]
    assert finding["subject"].startswith("trainer-1 (")
    assert "does not answer" in finding["problem"]
    cluster.wait_ready()


def test_a_shard_that_was_killed_is_missing(cluster: RunningCluster, capsys: CAPTURE) -> None:
    """Its device is named, and what to do."""
    cluster.stop("generation-1")
    try:
        report = examine(cluster, capsys, "--no-links")
    finally:
        cluster.start("generation-1")
        cluster.wait_ready()
    (finding,) = check(report, "membership")["findings"]
    assert finding["subject"] == "generation-1 on node 0"
    assert "read its log" in finding["advice"]


def test_another_version_and_a_wrong_clock_are_found(
    cluster: RunningCluster, capsys: CAPTURE
) -> None:
    """A process that says another version, with a clock 30 s ahead, is named by both checks."""

    async def run() -> dict[str, Any]:
        async with _stranger(cluster.endpoints["etcd"]):
            return await asyncio.to_thread(examine, cluster, capsys, "--no-links")

    report = asyncio.run(run())
    (skew,) = check(report, "versions")["findings"]
    assert skew["subject"].startswith("plan_search-stranger")
    assert "realloc 0.0.1" in skew["problem"]
    (clock,) = check(report, "clocks")["findings"]
    # The answer was some time on its way.
    assert re.search(r"\b(2[89]|3[0-2])\.\d s ahead", clock["problem"]), clock
    assert "chrony" in clock["advice"]


@asynccontextmanager
async def _stranger(etcd: str) -> AsyncIterator[None]:
    """A process of an old release on a machine whose clock is wrong."""
    ahead = DiagnosticsServicer("stranger", clock=lambda: time.time_ns() + 30 * 10**9)
    server = grpc.aio.server()
    diagnostics_pb2_grpc.add_DiagnosticsServiceServicer_to_server(ahead, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with EtcdStore((etcd,)) as store:
        member = Member(
            kind="plan_search",
            name="plan_search-stranger",
            address=f"127.0.0.1:{port}",
            incarnation=uuid.uuid4().hex,
            host="elsewhere",
            labels={"version/realloc": "0.0.1"},
        )
        async with Registration(store, member):
            yield
    await server.stop(None)


def test_without_etcd_nothing_else_is_tried(capsys: CAPTURE) -> None:
    """One failed check, which says that nobody answers, and the end comes soon."""
    assert main(["doctor", "--json", "--etcd", "127.0.0.1:1", "--timeout", "1"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert check(report, "etcd")["summary"].startswith("0 of 1 members answer")
    assert [each["name"] for each in report["checks"]] == ["etcd", "processes"]


def test_a_trainer_that_works_is_left_alone(cluster: RunningCluster, capsys: CAPTURE) -> None:
    """While a job holds the trainers, links are not measured, and the job succeeds."""
    with cluster.client() as client:
        job = client.submit(experiment(cluster.folder, "ppo", iterations=3))
        updates = job.watch()
        next(update for update in updates if update.report is not None)
        report = examine(cluster, capsys)
        assert check(report, "links")["status"] == "skipped"
        assert job.job_id in check(report, "links")["summary"]
        with connect_sync(cluster.endpoints["trainer-0"]) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            with pytest.raises(Conflict, match=job.job_id):
                stub.MeasureLinks(trainer_pb2.MeasureLinksRequest(num_ranks=1, message_bytes=1))
        job.wait()


@pytest.mark.parametrize(
    ("folder", "token", "error"),
    [
        ("/tmp", "../../../etc", InvalidInput),
        ("tmp", "0123456789abcdef", InvalidInput),
        ("/proc/none", "0123456789abcdef", NotFound),
        ("/proc", "0123456789abcdef", Conflict),
    ],
)
def test_only_the_tests_own_files_are_touched(
    cluster: RunningCluster, folder: str, token: str, error: type[Exception]
) -> None:
    """No path of a request leaves the folder; what cannot be written is said."""
    with connect_sync(cluster.endpoints["trainer-0"]) as channel:
        stub = diagnostics_pb2_grpc.DiagnosticsServiceStub(channel)
        request = pb.CheckFolderRequest(folder=folder, token=token, phase=pb.FOLDER_PHASE_WRITE)
        with pytest.raises(error):
            stub.CheckFolder(request)
