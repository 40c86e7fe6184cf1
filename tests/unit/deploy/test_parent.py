"""Processes that end with their parent, also where it ended before they could ask for that."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from deploy.local.parent import ending_with_parent

PARENT = """
import subprocess, sys
from deploy.local.parent import ending_with_parent
child = subprocess.Popen(
    ending_with_parent(["sh", "-c", "echo begun; exec sleep 1000"])
)
child.wait()
"""


def test_a_killed_parent_ends_its_child() -> None:
    """Both have one standard output, which is at its end when both are gone."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=60)


def test_a_parent_that_is_gone_before_is_noticed(tmp_path: Path) -> None:
    """A child that is another process's by the time that it looks does not begin."""
    command = ending_with_parent(["touch", str(tmp_path / "begun")])
    assert subprocess.run(command, check=True).returncode == 0
    (tmp_path / "begun").unlink()
    stranger = ["1" if word == str(os.getpid()) else word for word in command]
    assert subprocess.run(stranger).returncode == 1
    assert not (tmp_path / "begun").exists()
