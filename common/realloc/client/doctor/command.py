"""``realloc doctor``: examine a deployment, say what is wrong and what to do.

Exit status 0 where nothing failed, 1 where something did.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from realloc.client.access import default_token
from realloc.client.doctor.examination import Examination, examine
from realloc.client.doctor.findings import CheckResult, Finding, Status, worst
from realloc.client.endpoints_file import ENDPOINTS_FILE, read_endpoints
from realloc.core.errors import InvalidInput, Problem, raise_problems

_SHOWN = 8
"""Processes that are named where many have the same problem."""
_STYLES = {
    Status.OK: "green",
    Status.SKIPPED: "dim",
    Status.WARNING: "yellow",
    Status.FAILED: "bold red",
}


def doctor(arguments: argparse.Namespace) -> int:
    """Examine, and print each result as it comes."""
    # What the file says of access belongs to its own cluster alone.
    elsewhere = arguments.etcd or os.environ.get("REALLOC_ETCD_ENDPOINTS")
    here = {} if elsewhere else read_endpoints()
    tls_dir = arguments.tls_dir or os.environ.get("REALLOC_TLS_DIR", "") or here.get("tls_dir", "")
    what = Examination(
        etcd_endpoints=tuple(arguments.etcd or default_etcd()),
        tls_dir=tls_dir,
        token=default_token(here.get("token_file", "")) if tls_dir else "",
        folder=str(Path(arguments.folder).resolve()) if arguments.folder else "",
        measures_links=not arguments.no_links,
        message_bytes=int(arguments.message_mib * 2**20),
        timeout_seconds=arguments.timeout,
    )
    raise_problems(_problems(arguments))
    results = asyncio.run(_run(what, arguments))
    status = worst(result.status for result in results)
    if arguments.json:
        print(json.dumps({"status": status.value, "checks": [_plain(each) for each in results]}))
    else:
        _say_verdict(results)
    _write_links(results, arguments)
    return 1 if status is Status.FAILED else 0


def _problems(arguments: argparse.Namespace) -> Iterator[Problem]:
    """What would only be found out after all the measuring."""
    if not 0 < arguments.message_mib <= 1024:
        yield Problem("--message-mib", f"is {arguments.message_mib:g}; give up to 1024")
    if arguments.timeout <= 0:
        yield Problem("--timeout", f"is {arguments.timeout:g} and must be positive")
    if arguments.links is not None and arguments.no_links:
        yield Problem("--links", "needs what --no-links leaves out")
    if arguments.links is not None and not os.access(arguments.links.parent, os.W_OK):
        yield Problem("--links", f"{arguments.links.parent} cannot be written")


def default_etcd() -> list[str]:
    """REALLOC_ETCD_ENDPOINTS, else the etcd of the endpoints file in the working folder.

    Raises:
        InvalidInput: neither is there.
    """
    if endpoints := os.environ.get("REALLOC_ETCD_ENDPOINTS", ""):
        return endpoints.split(",")
    if endpoints := read_endpoints().get("etcd", ""):
        return endpoints.split(",")
    raise InvalidInput.at(
        "--etcd",
        f"is not given, REALLOC_ETCD_ENDPOINTS is not set, and {ENDPOINTS_FILE} names no etcd",
    )


async def _run(what: Examination, arguments: argparse.Namespace) -> list[CheckResult]:
    console = Console(highlight=False, soft_wrap=True, quiet=arguments.json)
    results = []
    with console.status("") as status:
        async for result in examine(what, status.update):
            results.append(result)
            _say(console, result)
    return results


def _say(console: Console, result: CheckResult) -> None:
    status = f"[{_STYLES[result.status]}]{result.status.value:8}[/]"
    console.print(f"{result.name:11} {status}", end="")
    console.print(result.summary, markup=False)
    for (problem, advice), subjects in _alike(result.findings).items():
        more = f" and {len(subjects) - _SHOWN} more" if len(subjects) > _SHOWN else ""
        if problem != result.summary:
            console.print(f"  {', '.join(subjects[:_SHOWN])}{more}: {problem}", markup=False)
        console.print(f"    → {advice}", markup=False)


def _alike(findings: Sequence[Finding]) -> dict[tuple[str, str], list[str]]:
    """Whom the same problem befell: a cluster has many processes."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        subjects.setdefault((finding.problem, finding.advice), []).append(finding.subject)
    return subjects


def _say_verdict(results: Sequence[CheckResult]) -> None:
    counts = dict.fromkeys(Status, 0)
    for result in results:
        for finding in result.findings:
            counts[finding.status] += 1
    failed, warnings = counts[Status.FAILED], counts[Status.WARNING]
    if failed or warnings:
        print(f"{failed} failed, {warnings} to look at")
    else:
        print("nothing is wrong")


def _plain(result: CheckResult) -> dict[str, Any]:
    plain = asdict(result) | {"status": result.status.value}
    plain["findings"] = [
        asdict(finding) | {"status": finding.status.value} for finding in result.findings
    ]
    return plain


def _write_links(results: Sequence[CheckResult], arguments: argparse.Namespace) -> None:
    """The table of links for `realloc plan --links`."""
    if arguments.links is None:
        return
    table = next((each.data for each in results if each.name == "links" and each.data), None)
    if table is None:
        raise InvalidInput.at(
            "--links", "cannot be written: the links were not measured, see above"
        )
    try:
        arguments.links.write_text(json.dumps(table, indent=1) + "\n")
    except OSError as error:
        raise InvalidInput.at(
            "--links", f"{arguments.links} cannot be written: {error.strerror}"
        ) from error
