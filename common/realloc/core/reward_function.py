"""The name of a user's reward function, checked without running any of its code.

A reward function is a plain function at the top level of a Python file:

    def reward(prompt: str, response: str, ground_truth: str | None, **fields) -> float:

It is called with keywords. ``fields`` are the other columns of the data row; a function
that does not take ``**fields`` gets only those that it names.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from realloc.core.confinement import lies_below
from realloc.core.errors import InvalidInput

ARGUMENTS = ("prompt", "response", "ground_truth")
"""What every call passes, by keyword."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunctionName:
    """A reward function that was found in a file below one of the roots."""

    path: Path
    """The file, symbolic links resolved."""
    function: str
    given: str
    """The file as the user wrote it, for messages."""

    def __str__(self) -> str:
        return f"{self.given}:{self.function}"


def check_reward_function(
    text: str, roots: Sequence[Path], *, field: str = "reward.function"
) -> RewardFunctionName:
    """Find the function that ``path/to/file.py:function`` names; nothing is imported.

    Args:
        text: a relative path is looked up below each root in turn.
        roots: folders that reward functions may lie in.
        field: path of the field that errors name.

    Raises:
        InvalidInput: no such file below the roots, not Python, no such function at its top
            level, or a function that does not take prompt, response and ground_truth.
    """
    given, separator, function = text.rpartition(":")
    if not separator or not given or not function.isidentifier():
        raise InvalidInput.at(field, f"is {text!r}; write path/to/file.py:function")
    path = _confined(given, roots, field)
    _check_signature(_find(path, given, function, field), given, field)
    return RewardFunctionName(path=path, function=function, given=given)


def _confined(given: str, roots: Sequence[Path], field: str) -> Path:
    allowed = [root.resolve() for root in roots]
    # Joining an absolute path to a root gives the absolute path itself.
    candidates = [(root / given).resolve() for root in allowed]
    inside = [path for path in candidates if lies_below(path, allowed)]
    if not inside:
        raise InvalidInput.at(field, f"{given} lies outside the folders that are allowed")
    for path in inside:
        if path.is_file():
            return path
    raise InvalidInput.at(field, f"there is no file {given} below the folders that are allowed")


def _find(path: Path, given: str, function: str, field: str) -> ast.FunctionDef:
    try:
        tree = ast.parse(path.read_bytes(), filename=given)
    except OSError as error:
        raise InvalidInput.at(field, f"{given} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", str(error))
        raise InvalidInput.at(field, f"{given}, line {line}: is not Python: {reason}") from error
    # The last definition of a name is the one that counts.
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return node
        if isinstance(node, ast.AsyncFunctionDef) and node.name == function:
            raise InvalidInput.at(
                field, f"{given}, line {node.lineno}: {function} is async; write a plain function"
            )
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    raise InvalidInput.at(
        field,
        f"{given} has no function {function!r} at its top level; it has "
        f"{', '.join(names) or 'none'}",
    )


def _check_signature(function: ast.FunctionDef, given: str, field: str) -> None:
    arguments = function.args
    where = f"{given}, line {function.lineno}: {function.name}"
    if arguments.posonlyargs:
        raise InvalidInput.at(field, f"{where} takes positional-only arguments; remove the '/'")
    by_keyword = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
    missing = [name for name in ARGUMENTS if name not in by_keyword]
    if missing and arguments.kwarg is None:
        raise InvalidInput.at(
            field,
            f"{where} takes no {' and no '.join(missing)}; write "
            f"def {function.name}({', '.join(ARGUMENTS)}, **fields)",
        )
