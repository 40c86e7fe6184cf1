"""``realloc layout``: what ranks store, and what moves between two layouts; without any service.

realloc layout show MODEL_FOLDER --layout d2t4p1 --kind megatron
realloc layout diff megatron:d1t2p1@0-1 vllm:d2t1p1@0-1 --model MODEL_FOLDER
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from realloc.client.layout_summary import (
    StoredModel,
    plan_difference,
    read_model,
    summarize_ranks,
)
from realloc.client.layout_text import render_difference, render_layout
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head
from realloc.core.transfer import TransferPlan
from realloc.reallocation.describe import describe_layout, receipts


def show(arguments: argparse.Namespace) -> int:
    """What each rank of a layout stores."""
    stored = _stored(arguments)
    layout = Layout.parse(arguments.layout, LayoutKind(arguments.kind))
    if arguments.rank is not None:
        text = describe_layout(stored.architecture, layout, arguments.rank)
        print(json.dumps({"rank": arguments.rank, "text": text}) if arguments.json else text)
        return 0
    ranks = summarize_ranks(stored, layout)
    if arguments.json:
        facts = {"layout": str(layout), "dtype": stored.dtype}
        print(json.dumps({**facts, "ranks": [asdict(rank) for rank in ranks]}))
    else:
        print(render_layout(stored, layout, ranks))
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """What a reallocation from one layout to another moves, beside the least that any could."""
    stored = _stored(arguments)
    kind = LayoutKind(arguments.kind)
    source, target = Layout.parse(arguments.source, kind), Layout.parse(arguments.target, kind)
    plan = plan_difference(stored, source, target, arguments.devices_per_node)
    if arguments.json:
        print(json.dumps(_difference_values(source, target, plan)))
    else:
        print(render_difference(stored, source, target, plan))
    return 0


def _stored(arguments: argparse.Namespace) -> StoredModel:
    head = Head.VALUE if arguments.value_head else Head.LM
    return read_model(Path(arguments.model), head, arguments.dtype)


def _difference_values(source: Layout, target: Layout, plan: TransferPlan) -> dict[str, Any]:
    return {
        "source": str(source),
        "target": str(target),
        "dtype": plan.dtype,
        "num_rounds": plan.programs[0].num_rounds,
        "traffic": asdict(plan.traffic),
        "receivers": [
            {
                "name": plan.endpoints[receipt.endpoint].name,
                "device": plan.endpoints[receipt.endpoint].device,
                "bytes_from": dict(receipt.bytes_from),
                "num_senders": receipt.num_senders,
            }
            for receipt in receipts(plan)
        ],
    }
