"""Whether a process holds the parameters that a transfer expects there."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from realloc.core.errors import InvalidInput, Problem
from realloc.core.transfer import ExpectedParameters, ParameterSpec, TransferProgram

_MAX_PROBLEMS = 8
"""Further ones are only counted: a wrong model has hundreds."""


def specs_of(parameters: Mapping[str, torch.Tensor]) -> dict[str, ParameterSpec]:
    """Name, shape and element type of parameters, by name."""
    return {
        name: ParameterSpec(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor in parameters.items()
    }


def check_parameters(
    expected: Sequence[ExpectedParameters], held: Sequence[Mapping[str, ParameterSpec]]
) -> None:
    """Compare what the layouts say with what each rank of this process has.

    Raises:
        InvalidInput: a wrong number of ranks, or parameters that are missing or have another
            shape or element type, each with its name and rank.
    """
    if len(expected) != len(held):
        raise InvalidInput.at(
            "programs", f"are for {len(expected)} ranks and this process has {len(held)}"
        )
    problems = [
        problem
        for index, (wanted, here) in enumerate(zip(expected, held, strict=True))
        for problem in _rank_problems(f"programs[{index}]", wanted, here)
    ]
    if len(problems) > _MAX_PROBLEMS:
        more = Problem("programs", f"have {len(problems) - _MAX_PROBLEMS} more such problems")
        problems = [*problems[:_MAX_PROBLEMS], more]
    if problems:
        raise InvalidInput(*problems)


def uncast_endpoints(
    dtype: str,
    programs: Sequence[TransferProgram],
    expected: Sequence[ExpectedParameters],
    held: Sequence[Mapping[str, ParameterSpec]],
) -> tuple[int, ...]:
    """The programs' endpoints where every parameter that moves has this element type."""
    return tuple(
        program.endpoint
        for program, wanted, here in zip(programs, expected, held, strict=True)
        if all(here[spec.name].dtype == dtype for spec in (*wanted.source, *wanted.destination))
    )


def _rank_problems(
    path: str, wanted: ExpectedParameters, held: Mapping[str, ParameterSpec]
) -> Iterator[Problem]:
    for spec in (*wanted.source, *wanted.destination):
        reason = _difference(spec, held.get(spec.name))
        if reason:
            yield Problem(path, f"{wanted.rank}: {spec.name} {reason}")


def _difference(wanted: ParameterSpec, held: ParameterSpec | None) -> str:
    """What is wrong with a parameter; empty where nothing is."""
    if held is None:
        return "is not here; is this another model, or another layout of it?"
    if held.shape != wanted.shape:
        return f"has shape {_text(held.shape)} here and {_text(wanted.shape)} in the layout"
    if wanted.dtype and held.dtype != wanted.dtype:
        return f"is {held.dtype} here and {wanted.dtype} is asked for; name the engine's dtype"
    return ""


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
