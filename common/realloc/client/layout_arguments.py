"""Arguments of ``realloc layout``; light, for ``--help``."""

import argparse

from realloc.core.layout import LayoutKind


def add_arguments(show: argparse.ArgumentParser, diff: argparse.ArgumentParser) -> None:
    """What both commands take."""
    show.add_argument("model", help="folder with a config.json, or the file")
    show.add_argument("--layout", required=True, help="such as d2t4p1 or vllm:d2t1p1@0-1")
    show.add_argument("--rank", type=int, default=None, help="every parameter of one rank")
    diff.add_argument("source", help="such as megatron:d1t2p1@0-1")
    diff.add_argument("target", help="such as vllm:d2t1p1@0-1")
    diff.add_argument("--model", required=True, help="folder with a config.json, or the file")
    diff.add_argument("--devices-per-node", type=int, default=8)
    for parser in (show, diff):
        kinds = [kind.value for kind in LayoutKind]
        parser.add_argument(
            "--kind", choices=kinds, default="megatron", help="where a layout names none"
        )
        parser.add_argument(
            "--dtype", default="", help="float32 or bfloat16 (default: the model's)"
        )
        parser.add_argument("--value-head", action="store_true", help="a critic or reward model")
