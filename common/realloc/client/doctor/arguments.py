"""The arguments of ``realloc doctor``; apart, so that ``--help`` loads nothing heavy."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``realloc doctor``."""
    parser.add_argument(
        "--etcd",
        nargs="+",
        metavar="HOST:PORT",
        help="members of etcd (default: REALLOC_ETCD_ENDPOINTS, else run/endpoints.json)",
    )
    parser.add_argument(
        "--tls-dir", default="", help="folder of an operator's certificate (REALLOC_TLS_DIR)"
    )
    parser.add_argument("--folder", help="folder that all shards should share, for checkpoints")
    parser.add_argument("--no-links", action="store_true", help="measure no bandwidth")
    parser.add_argument("--links", type=Path, help="write the bandwidths for realloc plan --links")
    parser.add_argument(
        "--message-mib", type=float, default=8.0, help="size of a large message (default 8)"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="seconds for each answer (default 10)"
    )
