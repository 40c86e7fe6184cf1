"""Layouts and what moves between two of them, as tables."""

from collections.abc import Sequence

from realloc.client.layout_summary import RankSummary, StoredModel
from realloc.core.layout import Layout
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import TransferPlan
from realloc.reallocation.describe import receipts
from realloc.reallocation.families import canonical_tensors

_SHOWN = 64
"""Rows of ranks; further ones are only counted."""


def render_layout(stored: StoredModel, layout: Layout, ranks: Sequence[RankSummary]) -> str:
    """A row per rank: where it stands on the axes, what it stores."""
    total = stored.num_bytes
    places = [_place(layout.strategy, each.rank) for each in ranks[:_SHOWN]]
    rows = [("rank", "device", *places[0], "tensors", "bytes", "padding", "share")]
    for each, place in zip(ranks, places, strict=False):
        rows.append(
            (
                str(each.rank),
                str(each.device),
                *map(str, place.values()),
                str(each.num_tensors),
                size_text(each.num_bytes),
                size_text(each.padding_bytes),
                f"{100 * (each.num_bytes - each.padding_bytes) / total:.1f} %",
            )
        )
    copies = sum(each.num_bytes - each.padding_bytes for each in ranks) / total
    held = "1 rank holds" if len(ranks) == 1 else f"{len(ranks)} ranks hold"
    lines = [
        _model_line(stored),
        f"{layout.short}: {held} the model {copies:.2f} times",
        "",
        *_table(rows),
    ]
    if len(ranks) > _SHOWN:
        lines.append(f"… and {len(ranks) - _SHOWN} more ranks")
    return "\n".join(lines)


def _place(strategy: ParallelStrategy, rank: int) -> dict[str, int]:
    """Where a rank stands on each axis; axes that most layouts lack only where there are some."""
    at = strategy.coordinate(rank)
    place = {"data": at.data, "tensor": at.tensor, "stage": at.pipeline}
    if strategy.context > 1:
        place["context"] = at.context
    if strategy.expert > 1:
        place["expert"] = at.data % strategy.expert
    return place


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def render_difference(
    stored: StoredModel, source: Layout, target: Layout, plan: TransferPlan
) -> str:
    """Bytes beside their bounds, then a row per receiving rank."""
    traffic = plan.traffic
    rows = [
        ("", "bytes", "least possible"),
        ("written at the target", size_text(traffic.total_bytes), ""),
        ("  from the same device", size_text(traffic.local_bytes), ""),
        (
            "across devices",
            size_text(traffic.cross_device_bytes),
            size_text(traffic.cross_device_bound),
        ),
        ("across nodes", size_text(traffic.cross_node_bytes), size_text(traffic.cross_node_bound)),
        (
            "busiest link out",
            size_text(traffic.busiest_send_bytes),
            size_text(traffic.busiest_send_bound),
        ),
        (
            "busiest link in",
            size_text(traffic.busiest_receive_bytes),
            size_text(traffic.busiest_receive_bound),
        ),
        (
            "busiest out inside a node",
            size_text(traffic.inside_send_bytes),
            size_text(traffic.inside_send_bound),
        ),
    ]
    return "\n".join(
        (
            _model_line(stored),
            f"{source.short} → {target.short}, in {_rounds(plan.programs[0].num_rounds)}",
            "",
            *_table(rows),
            "",
            *_table(_receivers(plan)),
        )
    )


def size_text(num_bytes: int) -> str:
    """``1.50 GiB``; exact below a KiB."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{num_bytes} B" if unit == "B" else f"{size:.2f} {unit}"


def _model_line(stored: StoredModel) -> str:
    model = stored.architecture
    return (
        f"{model.family}, {model.num_layers} layers, hidden size {model.hidden_size}, "
        f"{len(canonical_tensors(model))} tensors, {size_text(stored.num_bytes)} "
        f"as {stored.dtype}"
    )


def _receivers(plan: TransferPlan) -> list[tuple[str, ...]]:
    found = receipts(plan)
    rows: list[tuple[str, ...]] = [
        ("receiver", "device", "its device", "its node", "other nodes", "senders")
    ]
    for receipt in found[:_SHOWN]:
        endpoint, near = plan.endpoints[receipt.endpoint], receipt.bytes_from
        own = near["itself"] + near["its device"]
        rows.append(
            (
                endpoint.name,
                str(endpoint.device),
                size_text(own),
                size_text(near["its node"]),
                size_text(near["other nodes"]),
                str(receipt.num_senders),
            )
        )
    if len(found) > _SHOWN:
        rows.append((f"… and {len(found) - _SHOWN} more", "", "", "", "", ""))
    return rows


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
