"""Print the path of promtool; fetch one into .cache/prometheus where there is none.

    python3 tools/fetch_promtool.py

Without it the tests of the alerts are skipped. Exit status 1 and a sentence where there is none.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, from anywhere

from deploy.local.debian_packages import PackagesNotFound
from deploy.observability.promtool import fetch_promtool, find_promtool


def main() -> int:
    try:
        print(find_promtool() or fetch_promtool())
    except PackagesNotFound as error:
        print(f"no promtool, so alerts are not tested here: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
