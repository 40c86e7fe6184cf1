"""Proof that every node sees the run folder and the environment, before anything is started."""

import asyncio
import os
import sys

from deploy.slurm.programs import every_node
from deploy.slurm.settings import SlurmSettings
from realloc.core.errors import Unavailable

_SEEN_SECONDS = 60
"""Longest wait until a node sees a new file: some file systems cache for so long."""
_STEP_SECONDS = 120.0
"""Longest run of the step on all nodes."""

_SCRIPT = f"""
for i in $(seq {_SEEN_SECONDS}); do
    ls "$(dirname "$1")" >/dev/null  # makes NFS look again
    [ -e "$1" ] && break
    sleep 1
done
[ -e "$1" ] || {{ echo "$SLURMD_NODENAME does not see $1"; exit 1; }}
[ -x "$2" ] || {{ echo "$SLURMD_NODENAME cannot run $2"; exit 1; }}
"""


async def check_shared(settings: SlurmSettings) -> None:
    """Let every node look for a file that this one writes, and for the Python.

    Raises:
        Unavailable: a node lacks something; its name is in the message.
    """
    marker = settings.run_dir / "slurm" / f"marker-{os.environ['SLURM_JOB_ID']}"
    marker.touch()
    process = await asyncio.create_subprocess_exec(
        *("srun", *every_node(settings), "bash", "-c", _SCRIPT, "check"),
        *(str(marker), sys.executable),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _STEP_SECONDS)
    except TimeoutError:
        process.kill()
        raise Unavailable(f"not all nodes answered within {_STEP_SECONDS:.0f} s") from None
    finally:
        marker.unlink(missing_ok=True)
    if process.returncode:
        raise Unavailable(
            f"the nodes do not share what they need: {output.decode().strip()}; put RUN_DIR and "
            "VENV on a file system that all nodes mount"
        )
