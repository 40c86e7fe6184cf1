"""The process that runs a user's reward function. Standard library only: it knows no Realloc.

Started as ``python -I reward_process.py FILE GIVEN FUNCTION MEMORY_BYTES``. It answers one
JSON object per line, first ``{"ready": true}`` or ``{"error": …}`` for the file itself, then
one answer per request:

    {"prompt": …, "response": …, "ground_truth": …, "fields": {…}}
    {"reward": 1.0}    or    {"error": {"kind": …, "type": …, "message": …, "where": …}}

Requests come on what was file descriptor 0 and answers go to what was 1; both are moved away
before user code is loaded, so that a ``print`` ends in standard error.
"""

import ctypes
import importlib.util
import inspect
import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE = 2_000


def main() -> None:
    """Serve until the requests end."""
    path, given, name, memory_bytes = sys.argv[1:]
    requests, answers = _take_pipes()
    _die_with_parent()
    _limit_memory(int(memory_bytes))
    try:
        function = _load(path, name)
    except BaseException as error:
        _answer(answers, {"error": _describe(error, path, given)})
        return
    _answer(answers, {"ready": True})
    for line in requests:
        _answer(answers, _call(function, json.loads(line), path, given))


def _take_pipes() -> tuple[TextIO, TextIO]:
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _die_with_parent() -> None:
    """A service that is killed must not leave user code running."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(path: str, name: str) -> Callable[..., Any]:
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location("reward_function", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return _with_known_fields(function)


def _with_known_fields(function: Callable[..., Any]) -> Callable[..., Any]:
    """Drop the fields that the function does not take."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return function
    return lambda **fields: function(**{k: v for k, v in fields.items() if k in parameters})


def _call(
    function: Callable[..., Any], request: dict[str, Any], path: str, given: str
) -> dict[str, Any]:
    fields = dict(request["fields"])
    fields.update({key: request[key] for key in ("prompt", "response", "ground_truth")})
    try:
        result = function(**fields)
        return _checked(result)
    except BaseException as error:  # SystemExit too: user code must not end the job silently
        return {"error": _describe(error, path, given)}


def _checked(result: Any) -> dict[str, Any]:
    shown = repr(result)[:200]
    if isinstance(result, str | bytes) or not hasattr(type(result), "__float__"):
        return {"error": {"kind": "result", "message": f"returned {shown}, not a number"}}
    reward = float(result)
    if not math.isfinite(reward):
        return {"error": {"kind": "result", "message": f"returned {shown}, not a finite number"}}
    return {"reward": reward}


def _describe(error: BaseException, path: str, given: str) -> dict[str, str]:
    """What an exception says, and the line of the user's file that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.realpath(frame.filename) == path]
    where = f"{given}, line {own[-1].lineno}" if own else given
    if isinstance(error, SyntaxError) and error.filename == path:
        where = f"{given}, line {error.lineno}"
    return {
        "kind": "memory" if isinstance(error, MemoryError) else "raised",
        "type": type(error).__name__,
        "message": str(error)[:_MAX_MESSAGE],
        "where": where,
    }


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
