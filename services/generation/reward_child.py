"""One child process that runs a user's reward function, one call at a time."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from realloc.core.errors import JobFailed
from realloc.core.reward_function import RewardFunctionName

_SCRIPT = Path(__file__).with_name("reward_process.py")
_START_SECONDS = 60.0
"""Limit of loading the user's file: importing numpy from a cold disk takes seconds."""
_KILL_SECONDS = 5.0
_STDERR_BYTES = 2_000
_MAX_ANSWER_BYTES = 1 << 20


class RewardChild:
    """A warm process. After a failed call it is dead: start another."""

    def __init__(self, process: asyncio.subprocess.Process, name: RewardFunctionName) -> None:
        """Use `start`."""
        self._process = process
        self._name = name
        self._stderr = b""
        self._drain = asyncio.create_task(self._drain_stderr())

    @staticmethod
    async def start(name: RewardFunctionName, *, memory_bytes: int) -> "RewardChild":
        """Start a process and load the user's file.

        Raises:
            JobFailed: the file raises, lacks the function, or does not load in time.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_SCRIPT),
            str(name.path),
            name.given,
            name.function,
            str(memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            cwd=name.path.parent,
            start_new_session=True,  # so that what user code starts dies with it
            limit=_MAX_ANSWER_BYTES,
        )
        child = RewardChild(process, name)
        try:
            answer = await child._exchange(None, _START_SECONDS, "while its file was loaded")
            child._raise_error(answer, "while its file was loaded")
        except BaseException:
            await child.close()
            raise
        return child

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def call(self, request: dict[str, Any], *, where: str, timeout_seconds: float) -> float:
        """The reward of one row.

        Args:
            request: prompt, response, ground_truth and fields.
            where: the row, as errors name it.

        Raises:
            JobFailed: the function raised, returned no finite number, did not return in time,
                or took the process down. In the last two cases the process is dead.
        """
        try:
            answer = await self._exchange(request, timeout_seconds, where)
        except BaseException:
            await self.close()
            raise
        self._raise_error(answer, where)
        return float(answer["reward"])

    async def close(self) -> None:
        """Kill the process and all that it started. Safe to call twice."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Standard error ends late where a grandchild in a session of its own holds it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await self._process.wait()
        self._drain.cancel()
        await asyncio.gather(self._drain, return_exceptions=True)

    async def _exchange(
        self, request: dict[str, Any] | None, timeout_seconds: float, where: str
    ) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            async with asyncio.timeout(timeout_seconds):
                if request is not None:
                    stdin.write(json.dumps(request).encode() + b"\n")
                    await stdin.drain()
                line = await stdout.readline()
        except TimeoutError:
            raise JobFailed(
                f"reward function {self._name} did not return within {timeout_seconds:g} s "
                f"{where}; make it faster or raise reward.timeout_seconds"
            ) from None
        except (ConnectionError, ValueError):
            line = b""
        try:
            return dict(json.loads(line))
        except ValueError:
            raise JobFailed(await self._ended(where)) from None

    async def _ended(self, where: str) -> str:
        await self.close()
        code = self._process.returncode
        how = f"exit code {code}"
        if code is not None and code < 0 and code != -signal.SIGKILL:
            how = f"signal {signal.Signals(-code).name}"
        said = self._stderr.decode(errors="replace").strip()[-_STDERR_BYTES:]
        return (
            f"the process of reward function {self._name} ended {where} ({how})"
            f"{': ' + said if said else ''}"
        )

    def _raise_error(self, answer: dict[str, Any], where: str) -> None:
        error = answer.get("error")
        if error is None:
            return
        if error["kind"] == "result":
            raise JobFailed(f"reward function {self._name} {error['message']} {where}")
        what = f"raised {error['type']} at {error['where']}, {where}"
        if error["kind"] == "memory":
            what = f"ran out of memory at {error['where']}, {where}; raise reward.memory_bytes"
        raise JobFailed(f"reward function {self._name} {what}: {error['message']}")

    async def _drain_stderr(self) -> None:
        """Keep the last bytes of what user code prints; a full pipe would stop it."""
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(65_536):
            self._stderr = (self._stderr + data)[-_STDERR_BYTES:]


def _environment() -> dict[str, str]:
    """What user code sees: none of the service's secrets; one thread per process."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "TZ") if name in os.environ}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
