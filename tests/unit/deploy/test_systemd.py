"""Units for one machine: systemd takes them, and their files are what the services read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.node.config import NodeConfig
from realloc.config import ServiceConfig, load
from services.generation.config import GenerationConfig
from services.param_store.config import ParamStoreConfig
from services.plan_search.config import PlanSearchConfig
from services.scheduler.config import SchedulerConfig
from services.trainer.config import TrainerConfig

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "systemd"
UNITS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".service", ".target"))
CONFIGS = {
    "node": NodeConfig,
    "scheduler": SchedulerConfig,
    "plan_search": PlanSearchConfig,
    "param_store": ParamStoreConfig,
    "trainer": TrainerConfig,
    "generation": GenerationConfig,
}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_units(tmp_path):
    """systemd-analyze finds no unknown setting and no unit that is missing. Programs are replaced
    by ones that exist here."""
    for path in UNITS:
        text = path.read_text().replace("/opt/realloc/.venv/bin/python", sys.executable)
        text = text.replace("/usr/bin/etcd", sys.executable)
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "realloc" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("name", CONFIGS)
def test_files_are_configurations(name):
    """Every key is a field, with a value of its type; all addresses are loopback."""
    config = load(CONFIGS[name], str(FOLDER / "config" / f"{name}.yaml"), environ={})
    if isinstance(config, ServiceConfig):
        assert config.host == "127.0.0.1"


def test_units_start_what_exists():
    """Each unit's module is there, its configuration is among the files, and the target wants all
    units."""
    wanted = re.search(r"Wants=(.*)", (FOLDER / "realloc.target").read_text())
    assert wanted is not None
    names = wanted[1].split()
    for path in UNITS:
        if path.suffix == ".service":
            stem = path.stem.rstrip("@")
            assert any(name.startswith(stem) for name in names), path.name
    services = [name.partition("@")[2].removesuffix(".service") for name in names if "@" in name]
    assert sorted(services) == ["param_store", "plan_search", "scheduler"]
    for name in (*services, "node"):
        assert (FOLDER / "config" / f"{name}.yaml").exists()
    node = load(NodeConfig, str(FOLDER / "config" / "node.yaml"), environ={})
    for file in (node.trainer_config, node.generation_config):
        assert (FOLDER / "config" / Path(file).name).exists()
