"""The page of names: complete, consistent, light."""

import re
import subprocess
import sys

from realloc.telemetry.names import Attribute, Metric, Span

UNITS = {"", "1", "s", "By", "By/s", "nat"}
"""Beside annotations in braces, which say what is counted."""


def test_every_name_has_a_meaning() -> None:
    """Each span, attribute and metric says in one sentence what it is."""
    for member in (*Span, *Attribute, *Metric):
        assert member.meaning.endswith("."), member
    for measured in (*Attribute, *Metric):
        assert measured.unit in UNITS or re.fullmatch(r"\{[a-z]+\}", measured.unit), measured


def test_names_are_unique_and_lower_case() -> None:
    """No name stands twice, and all are dotted lower-case words."""
    for kind in (Span, Attribute, Metric):
        assert len({str(member) for member in kind}) == len(kind.__members__)
        for member in kind:
            assert re.fullmatch(r"[a-z]+([._][a-z]+)*", member), member


def test_reading_side_imports_no_opentelemetry() -> None:
    """Names, recorded spans and timelines need the standard library only."""
    code = (
        "import sys, realloc.telemetry.names, realloc.telemetry.timeline;"
        "bad = [m for m in sys.modules if m.split('.')[0] in"
        " ('opentelemetry', 'structlog', 'grpc', 'numpy')]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
