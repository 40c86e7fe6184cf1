"""Print the path of a usable etcd; fetch one into .cache/etcd where there is none.

    python3 tools/fetch_etcd.py

Needs no virtual environment. Exit status 1 and a sentence where there is none to be had.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, from anywhere

from deploy.local.etcd_binary import EtcdNotFound, fetch_etcd, find_etcd


def main() -> int:
    """Find, else fetch; a binary that the user named is never replaced by another."""
    try:
        print(find_etcd())
        return 0
    except EtcdNotFound as error:
        if os.environ.get("REALLOC_ETCD"):
            print(error, file=sys.stderr)
            return 1
        print("no usable etcd on this machine; fetching the distribution's", file=sys.stderr)
    try:
        print(fetch_etcd())
    except EtcdNotFound as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
