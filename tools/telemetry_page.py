"""Write docs/telemetry.md: every span, metric and attribute.

python tools/telemetry_page.py           # write it
python tools/telemetry_page.py --check   # fail where it is out of date
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.prometheus import label_name, series_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "telemetry.md"

HEAD = """# Telemetry

Every span, metric and attribute. This page is written by `tools/telemetry_page.py` from
`common/realloc/telemetry/names.py`; `make check` fails where they differ.

Services send OTLP to the collector named by `otlp_endpoint`, and write OTLP-JSON files into
`trace_dir`; either may be empty. `deploy/observability` has a collector, Prometheus with alerts,
Tempo and a Grafana dashboard. A job's trace is one trace: `realloc trace JOB` writes it as a
timeline for Perfetto.

Series of Prometheus carry two more labels: `job`, which is `realloc/` and the kind of the service,
and `instance`, the name of the process.
"""


def page() -> str:
    """The whole page."""
    spans = ((str(span), span.meaning) for span in Span)
    metrics = (
        (
            str(metric),
            metric.instrument.value,
            metric.unit.strip("{}"),
            " ".join(f"`{name}`" for name in series_names(metric)),
            metric.meaning,
        )
        for metric in Metric
    )
    attributes = (
        (
            str(attribute),
            attribute.unit.strip("{}"),
            f"`{label_name(attribute)}`",
            attribute.meaning,
        )
        for attribute in Attribute
    )
    return "\n".join(
        [
            HEAD,
            "## Spans\n\nFrom the outside in. Calls between processes are named "
            "package.Service/Method; fetches of batches have none: see batch.pull.\n",
            *table(("span", "meaning"), spans),
            "\n## Metrics\n",
            *table(("metric", "instrument", "unit", "in Prometheus", "meaning"), metrics),
            "\n## Attributes\n",
            *table(("attribute", "unit", "label in Prometheus", "meaning"), attributes),
            "",
        ]
    )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """A table's lines."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE} is out of date: python tools/telemetry_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
