"""The file in which a cluster of the working folder says where its processes are."""

import json
from collections.abc import Mapping
from pathlib import Path

ENDPOINTS_FILE = Path("run/endpoints.json")
"""Addresses of processes by name; ``authority`` and ``token_file`` where TLS is on, and
``tls_dir``, an operator's certificate."""


def read_endpoints() -> Mapping[str, str]:
    """What the file says; nothing where there is none."""
    try:
        found = json.loads(ENDPOINTS_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
