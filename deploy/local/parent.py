"""Processes that end with the process that started them, even when that is killed.

Linux sends a signal when the *thread* that started a process ends: start them from one that
stays, such as the main thread or an event loop's.
"""

import os
from collections.abc import Sequence

# From util-linux; a Python hook would have to fork a process that has threads. The kernel only
# tells of an end that comes after setpriv has asked for it: of an earlier one the shell tells.
_ASK = ("setpriv", "--pdeathsig", "TERM", "--")
_LOOK = ("sh", "-c", 'test "$PPID" = "$0" && exec "$@"')


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` and gets SIGTERM when this process is gone."""
    return [*_ASK, *_LOOK, str(os.getpid()), *command]
