"""Jobs of a cluster that must stop for a while: paused at a checkpoint, resumed in the next run."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedJobs:
    """The jobs that this deployment paused itself, in a file that the next run of it reads."""

    path: Path
    report: Callable[[str], None]
    environment: Mapping[str, str]
    """Of the ``realloc`` command: whom it talks to, and who it is."""

    async def pause(self, *, timeout_seconds: float) -> None:
        """Pause what can be resumed; the rest ends with the cluster, and the log says so."""
        answer = await self._realloc("drain", f"--timeout={timeout_seconds:.0f}", "--json")
        for job in answer.get("left", ()):
            self.report(f"{job['job_id']} could not be paused: {job['reason']}")
        names = [job["job_id"] for job in answer.get("paused", ())]
        for job in answer.get("paused", ()):
            self.report(f"{job['job_id']} is paused after iteration {job['iteration']}")
        self.path.write_text(json.dumps(names) + "\n")

    async def resume(self) -> None:
        """Let them go on; each once."""
        if not self.path.exists():
            return
        for job_id in json.loads(self.path.read_text()):
            answer = await self._realloc("resume", job_id, "--json")
            if "job_id" in answer:
                self.report(f"resumed {job_id} after iteration {answer['iteration']}")
            else:
                self.report(f"{job_id} was not resumed: {answer}")
        self.path.unlink()

    async def _realloc(self, *arguments: str) -> dict[str, Any]:
        """What a ``realloc`` command answers; its problems where it failed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "realloc.client.cli", *arguments),
            env=dict(self.environment),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        lines = output.decode().splitlines()
        try:
            answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        except ValueError:
            answer = {"problems": lines}
        return answer
