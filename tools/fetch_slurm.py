"""Print the folder of a Slurm for tests; fetch the distribution's into .cache/slurm.

    python3 tools/fetch_slurm.py

Nothing is installed, root is not needed: the programs run from where they are unpacked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, from anywhere

from deploy.local.debian_packages import PackagesNotFound, unpack

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "slurm"
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")


def main() -> int:
    if not (CACHE / "usr" / "sbin" / "slurmctld-wlm").exists():
        print("fetching the distribution's Slurm", file=sys.stderr)
        try:
            unpack(PACKAGES, CACHE, with_dependencies=True)
        except PackagesNotFound as error:
            print(f"The tests of Slurm need Debian 12 or Ubuntu: {error}.", file=sys.stderr)
            return 1
    print(CACHE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
