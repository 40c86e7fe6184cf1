"""A Slurm of several virtual nodes on this machine, as root or as an ordinary user.

Every node is a slurmd with a port and a spool folder of its own; munge has its own socket and
key. The programs come from tools/fetch_slurm.py and run from where they were unpacked.
"""

import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest

from tools.fetch_slurm import CACHE

_ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 30.0
COMMAND_SECONDS = 60.0
_LIBRARIES = CACHE / "usr" / "lib" / f"{platform.machine()}-linux-gnu"

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
# A short life of credentials lets a requeued job start again after 10 s instead of 120.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
InactiveLimit=0
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmMachine:
    """Starts when entered; all of its daemons are gone when left."""

    def __init__(self, folder: Path, *, user: str, num_nodes: int = 4) -> None:
        """
        Args:
            folder: gets keys, state and logs; becomes the user's.
            user: name of the account under which everything runs, also the jobs.
        """
        self.folder = folder
        self.user = user
        self._account = pwd.getpwnam(user)
        self._num_nodes = num_nodes
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "HOME": str(folder),
            "USER": user,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{CACHE / 'usr' / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": f"{_LIBRARIES}:{_LIBRARIES / 'slurm-wlm'}",
            "PYTHONPATH": f"{_ROOT / 'common'}:{_ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def python(self) -> str:
        """An interpreter that the user may run, with the packages of this one."""
        return str(self.folder / "venv" / "bin" / "python")

    def run(
        self, *command: str, check: bool = True, timeout_seconds: float = COMMAND_SECONDS
    ) -> str:
        """What a command of the user prints; one that hangs says where it does."""
        process = subprocess.Popen(
            self._as_user(command),
            env={**self.environment, "PYTHONFAULTHANDLER": "1"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            output, errors = process.communicate(timeout=READY_SECONDS)
        assert not check or process.returncode == 0, f"{command}: {output}{errors}"
        return output

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        """A command of the user that goes on; its output is one pipe."""
        return subprocess.Popen(
            self._as_user(command),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes_of(self, job_id: str) -> list[psutil.Process]:
        """Whatever runs on this machine as part of a job."""
        return [each for each in psutil.process_iter() if self._belongs(each, job_id)]

    def _belongs(self, process: psutil.Process, job_id: str) -> bool:
        try:
            environment = process.environ()
        except psutil.Error:
            return False
        where = environment.get("SLURM_CONF"), environment.get("SLURM_JOB_ID")
        return where == (self.environment["SLURM_CONF"], job_id)

    def job_field(self, job_id: str, field: str) -> str:
        """One field of ``scontrol show job``."""
        shown = self.run("scontrol", "show", "job", job_id).split()
        return next(word.partition("=")[2] for word in shown if word.startswith(f"{field}="))

    def __enter__(self) -> Self:
        try:
            self._configure()
            self._start_daemons()
            self._wait_idle()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _configure(self) -> None:
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        names = [f"n{index}" for index in range(self._num_nodes)]
        controller, *ports = _free_ports(1 + self._num_nodes)
        host = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=100000"
            for name, port in zip(names, ports, strict=True)
        ]
        text = _CONFIGURATION.format(
            host=host,
            port=controller,
            user=self.user,
            folder=self.folder,
            plugins=_LIBRARIES / "slurm-wlm",
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        self.folder.chmod(0o755)
        self._make_environment()
        for path in (self.folder, *self.folder.rglob("*")):
            shutil.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _make_environment(self) -> None:
        """A shallow virtual environment: the tests' own Python may be hidden in a home folder."""
        version = "{}.{}".format(*sys.version_info)
        own = os.path.realpath(sys.executable)
        base = own if self._is_open(Path(own)) else f"/usr/bin/python{version}"
        if not Path(base).exists():
            pytest.skip(f"{self.user} may run neither {own} nor {base}, which does not exist")
        folder = self.folder / "venv"
        subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
        packages = folder / "lib" / f"python{version}" / "site-packages"
        (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def _is_open(self, path: Path) -> bool:
        """True where the user may pass every folder above a file."""
        if self._account.pw_uid == os.geteuid():
            return True
        return all(parent.stat().st_mode & 0o001 for parent in path.parents)

    def _start_daemons(self) -> None:
        programs = CACHE / "usr" / "sbin"
        munge = {
            name: self.folder / f"munge.{name}" for name in ("socket", "key", "log", "pid", "seed")
        }
        files = (
            f"--{option}={munge[name]}"
            for option, name in (
                ("socket", "socket"),
                ("key-file", "key"),
                ("log-file", "log"),
                ("pid-file", "pid"),
                ("seed-file", "seed"),
            )
        )
        # Temporary folders are writable by all, which munge would refuse.
        self._daemon("munged", str(programs / "munged"), "-F", "--force", *files)
        self._daemon("slurmctld", str(programs / "slurmctld-wlm"), "-D")
        for index in range(self._num_nodes):
            stepd = str(programs / "slurmstepd-wlm")
            node = ("-D", "-N", f"n{index}", "-d", stepd)
            self._daemon(f"slurmd-n{index}", str(programs / "slurmd-wlm"), *node)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    self._as_user(("setpriv", "--pdeathsig", "TERM", "--", *command)),
                    env=self.environment,
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                )
            )

    def _wait_idle(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            states = self.run("sinfo", "-h", "-N", "-o", "%t", check=False).split()
            if states == ["idle"] * self._num_nodes:
                return
            assert time.monotonic() < deadline, f"Slurm is not up: {states}, see {self.folder}"
            time.sleep(0.2)

    def _stop(self) -> None:
        self.cancel_jobs()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def cancel_jobs(self) -> None:
        """Jobs would go on without the daemons."""
        self.run("scancel", "--user", self.user, check=False)
        deadline = time.monotonic() + READY_SECONDS
        while self.run("squeue", "-h", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)

    def _as_user(self, command: Sequence[str]) -> list[str]:
        if self._account.pw_uid == os.geteuid():
            return list(command)
        ids = (f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}")
        return ["setpriv", *ids, "--clear-groups", "--", *command]


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
