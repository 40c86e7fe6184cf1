"""Generate common/realloc/api from protos/; `--check` fails where it is not fresh."""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
TARGET = ROOT / "common" / "realloc" / "api"
DOC = '"""Generated from protos/ by `make protos`; do not edit."""\n'


def generate(folder: Path) -> None:
    """Write the package realloc.api below a folder."""
    files = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
            f"--proto_path={SOURCES}",
            f"--python_out={folder}",
            f"--mypy_out=quiet:{folder}",
            f"--grpc_python_out={folder}",
            f"--mypy_grpc_out=quiet:{folder}",
            *map(str, files),
        ],
        check=True,
    )
    api = folder / "realloc" / "api"
    for package in [api, *(path for path in api.rglob("*") if path.is_dir())]:
        (package / "__init__.py").write_text(DOC)
    for path in api.rglob("*_grpc.py*"):
        if "service " not in (SOURCES / _source_of(path, folder)).read_text():
            path.unlink()


def _source_of(path: Path, folder: Path) -> Path:
    relative = path.relative_to(folder)
    return relative.with_name(relative.name.split("_pb2_grpc")[0] + ".proto")


def is_fresh(folder: Path) -> bool:
    """True where the generated tree equals the committed one."""
    made = {p.relative_to(folder / "realloc/api") for p in (folder / "realloc/api").rglob("*.py*")}
    kept = {p.relative_to(TARGET) for p in TARGET.rglob("*.py*") if "__pycache__" not in p.parts}
    return made == kept and all(
        filecmp.cmp(folder / "realloc/api" / name, TARGET / name, shallow=False) for name in made
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; change nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        if arguments.check:
            if is_fresh(Path(temporary)):
                return 0
            print("common/realloc/api is not fresh: run `make protos` and commit the result")
            return 1
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(Path(temporary) / "realloc" / "api", TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
