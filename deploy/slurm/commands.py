"""Slurm's commands, and their complaints as errors of ours."""

import re
import shutil
import subprocess
from collections.abc import Sequence

from realloc.core.errors import InvalidInput, NotFound, ReallocError, Unavailable

_SECONDS = 60.0
GONE = "GONE"
"""State of a job that Slurm has forgotten."""
UNKNOWN = "UNKNOWN"
"""State of a job while Slurm's controller does not answer."""
PENDING = "PENDING"
_ACTIVE = {PENDING, "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", UNKNOWN}


def require_slurm() -> None:
    """
    Raises:
        NotFound: this machine has no Slurm commands.
    """
    if shutil.which("sbatch") is None:
        raise NotFound(
            "sbatch is not on the PATH: run this on a login node of the cluster, or load "
            "its module first (often `module load slurm`)"
        )


def slurm(*command: str) -> str:
    """What a command prints.

    Raises:
        InvalidInput: it refused; its own words.
        Unavailable: it did not answer in time.
    """
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not answer within {_SECONDS:.0f} s") from None
    if result.returncode != 0:
        raise InvalidInput.at(command[0], " ".join(result.stderr.split()))
    return result.stdout + (result.stderr if "--test-only" in command else "")


def gpus_of(partition: str) -> int:
    """GPUs that every node of a partition has; 0 where a node has none.

    Raises:
        InvalidInput: no such partition.
    """
    chosen = ["-p", partition] if partition else []
    lines = slurm("sinfo", "-h", "-o", "%P|%G", *chosen).splitlines()
    if not lines:
        known = ", ".join(sorted({*slurm("sinfo", "-h", "-o", "%P").split()})) or "none"
        raise InvalidInput.at("partition", f"{partition!r} does not exist; there are {known}")
    rows = [line.split("|") for line in lines]
    if not partition:
        rows = [row for row in rows if row[0].endswith("*")] or rows
    return min(count_gpus(generic) for _, generic in rows)


def count_gpus(generic: str) -> int:
    """GPUs in a node's generic resources: ``gpu:a100:8(S:0-1),nic:2`` → 8."""
    counts = re.findall(r"(?:^|,)gpu(?::[A-Za-z][^:,()]*)?:(\d+)", generic)
    return sum(map(int, counts))


def state_of(job_id: str) -> str:
    """A job's state in one word: PENDING, RUNNING, COMPLETING, …, GONE or UNKNOWN."""
    query = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    try:
        result = subprocess.run(
            query, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return UNKNOWN
    if result.returncode != 0 and "Invalid job id" not in result.stderr:
        return UNKNOWN  # the controller restarts: not a word about the job
    return result.stdout.strip() or GONE


def reason_of(job_id: str) -> str:
    """Why a job waits, in Slurm's word; empty where it does not, or nobody knows."""
    try:
        reason = slurm("squeue", "-h", "-o", "%r", "-j", job_id).strip()
    except ReallocError:
        return ""
    return "" if reason == "None" else reason


def is_active(state: str) -> bool:
    """True while a job waits, runs, or is about to end, and where nobody knows."""
    return state in _ACTIVE


def hostnames(nodelist: Sequence[str] | str) -> list[str]:
    """The nodes of a compressed list such as ``n[0-3]``."""
    text = nodelist if isinstance(nodelist, str) else ",".join(nodelist)
    return slurm("scontrol", "show", "hostnames", text).split()


def address_of(node: str) -> str:
    """The address under which Slurm's own daemons reach a node."""
    shown = slurm("scontrol", "-o", "show", "node", node)
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else node
