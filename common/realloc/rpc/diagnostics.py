"""What every process answers about itself: clock, GPUs, space, and whether it shares a folder."""

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realloc.api.diagnostics.v1 import diagnostics_pb2 as pb
from realloc.api.diagnostics.v1 import diagnostics_pb2_grpc
from realloc.core.errors import Conflict, InvalidInput, NotFound

_TOKEN = re.compile(r"[0-9a-f]{8,64}")
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """What only a process that owns a device can say."""

    num_gpus: int = 0
    """GPUs that torch sees."""
    cuda_version: str = ""
    """Of torch's build; empty for a build without CUDA."""
    job_id: str = ""
    """Job that holds the shard; empty where it is free."""


def no_shard() -> ShardFacts:
    """The facts of a process without a device."""
    return ShardFacts()


class DiagnosticsServicer(diagnostics_pb2_grpc.DiagnosticsServiceServicer):
    """Looks at this process and its machine; touches no job."""

    def __init__(
        self,
        name: str,
        facts: Callable[[], ShardFacts] = no_shard,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """
        Args:
            name: of this process; names its file in the test of a shared folder.
            clock: nanoseconds since 1970.
        """
        self._name = name
        self._facts = facts
        self._clock = clock

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:
        facts = self._facts()
        return pb.InspectResponse(
            time_unix_nanos=self._clock(),
            num_gpus=facts.num_gpus,
            cuda_version=facts.cuda_version,
            job_id=facts.job_id,
            shm_free_bytes=_free_bytes(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else -1,
            disk_free_bytes=_free_bytes(Path.cwd()),
        )

    async def CheckFolder(
        self, request: pb.CheckFolderRequest, context: Any
    ) -> pb.CheckFolderResponse:
        probe = _probe_folder(request)
        response = pb.CheckFolderResponse(free_bytes=_free_bytes(probe.parent))
        match request.phase:
            case pb.FOLDER_PHASE_WRITE:
                _write(probe, self._name)
            case pb.FOLDER_PHASE_LIST:
                response.names.extend(_names(probe))
            case pb.FOLDER_PHASE_REMOVE:
                shutil.rmtree(probe, ignore_errors=True)
            case _:
                raise InvalidInput.at("phase", "is none of WRITE, LIST and REMOVE")
        return response


def _probe_folder(request: pb.CheckFolderRequest) -> Path:
    """Where the files of one test lie: nothing else is ever written or removed."""
    if not _TOKEN.fullmatch(request.token):
        raise InvalidInput.at("token", f"{request.token!r} is not 8 to 64 hexadecimal digits")
    folder = Path(request.folder)
    if not folder.is_absolute():
        raise InvalidInput.at("folder", f"{request.folder!r} is not an absolute path")
    if not folder.is_dir():
        raise NotFound(f"{folder} is not there")
    return folder / f".realloc-doctor-{request.token}"


def _write(probe: Path, name: str) -> None:
    try:
        probe.mkdir(exist_ok=True)
        (probe / name).write_text(name)
    except OSError as error:
        raise Conflict(f"{probe.parent} cannot be written: {error.strerror}") from error


def _names(probe: Path) -> list[str]:
    """The processes whose files can be read here, and say what they ought to."""
    if not probe.is_dir():
        return []
    return sorted(path.name for path in probe.iterdir() if path.read_text() == path.name)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
