"""Reward functions of users, in real child processes: right, wrong, endless, greedy."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput, JobFailed
from realloc.core.reward_function import check_reward_function
from services.generation.rewards import RewardFunction, RewardRow

TEST_SECONDS = 60.0

USER_CODE = """
import os, subprocess, sys, time

CALLS = 0

def exact(prompt, response, ground_truth):
    return float(response == ground_truth)

def noisy(prompt, response, ground_truth, **fields):
    print("to standard output", flush=True)
    os.write(1, b"x" * 200_000)
    os.write(2, b"y" * 200_000)
    return fields["bonus"]

def named(prompt, response, ground_truth, bonus=0):
    return bonus

def counting(prompt, response, ground_truth):
    global CALLS
    CALLS += 1
    return CALLS

def raises(prompt, response, ground_truth):
    if response == "bad":
        raise KeyError("no such answer")
    return 1

def hangs(prompt, response, ground_truth):
    if response == "bad":
        while True:
            pass
    return 1

def exits(prompt, response, ground_truth):
    sys.exit(3)

def dies(prompt, response, ground_truth):
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)

def greedy(prompt, response, ground_truth):
    return len(bytearray(1 << 30))

def environment(prompt, response, ground_truth):
    return sum("SECRET" in name or "TOKEN" in name for name in os.environ)

def process_id(prompt, response, ground_truth):
    return os.getpid()

def grandchild(prompt, response, ground_truth):
    return subprocess.Popen(["sleep", "600"]).pid

def result(prompt, response, ground_truth):
    return eval(response)
"""


def make(tmp_path: Path, function: str, code: str = USER_CODE, **limits: float) -> RewardFunction:
    (tmp_path / "user.py").write_text(code)
    return RewardFunction(
        check_reward_function(f"user.py:{function}", [tmp_path]),
        timeout_seconds=limits.get("timeout_seconds", 60.0),
        memory_bytes=int(limits.get("memory_bytes", 512 << 20)),
        num_processes=int(limits.get("num_processes", 1)),
    )


def run(function: RewardFunction, work: Callable[[RewardFunction], Awaitable[object]]) -> object:
    async def main() -> object:
        try:
            async with asyncio.timeout(TEST_SECONDS):
                return await work(function)
        finally:
            await function.close()

    return asyncio.run(main())


def row(response: str, **fields: object) -> RewardRow:
    return RewardRow(
        prompt="1+1=",
        response=response,
        ground_truth="2",
        fields=fields,
        where=f"in row {response}",
    )


def score(function: RewardFunction, *rows: RewardRow) -> object:
    return run(function, lambda f: f.score(rows))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_rewards_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    """Each row gets its own reward, also when several processes share the rows."""
    function = make(tmp_path, "exact", num_processes=2)
    assert score(function, *(row(str(i % 3)) for i in range(20))) == [
        float(i % 3 == 2) for i in range(20)
    ]


def test_one_process_serves_all_calls(tmp_path: Path) -> None:
    """The process stays warm: module state survives from call to call."""
    assert score(make(tmp_path, "counting"), *(row(str(i)) for i in range(4))) == [1, 2, 3, 4]


@pytest.mark.parametrize("function", ["noisy", "named"])
def test_columns_of_the_row_reach_the_function_whatever_it_prints(
    tmp_path: Path, function: str
) -> None:
    """Extra fields arrive, and output of user code does not break the protocol."""
    rows = [row(str(i), bonus=i / 2, other="dropped where unknown") for i in range(3)]
    assert score(make(tmp_path, function), *rows) == [0.0, 0.5, 1.0]


def test_an_exception_names_its_line_and_row(tmp_path: Path) -> None:
    """A raising function gives its exception, file and line; the process goes on."""
    line = 1 + USER_CODE.splitlines().index('        raise KeyError("no such answer")')

    async def work(function: RewardFunction) -> list[float]:
        with pytest.raises(JobFailed) as caught:
            await function.score([row("good"), row("bad")])
        message = str(caught.value)
        assert f"raised KeyError at user.py, line {line}, in row bad" in message
        assert "no such answer" in message
        assert str(tmp_path) not in message
        return await function.score([row("good")])

    assert run(make(tmp_path, "raises"), work) == [1.0]


def test_a_function_that_never_returns_is_killed_and_replaced(tmp_path: Path) -> None:
    """The error names row and limit, comes in time, and the next row is scored."""

    async def work(function: RewardFunction) -> list[float]:
        with pytest.raises(JobFailed, match=r"user.py:hangs did not return within 2 s in row bad"):
            await function.score([row("bad")])
        return await function.score([row("good")])

    assert run(make(tmp_path, "hangs", timeout_seconds=2.0), work) == [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("exits", r"raised SystemExit at user.py, line \d+, in row x: 3"),
        ("dies", r"ended in row x \(exit code 7\): last words"),
        ("greedy", r"ran out of memory at user.py, line \d+, in row x"),
    ],
)
def test_a_function_cannot_take_the_service_down(
    tmp_path: Path, function: str, message: str
) -> None:
    """Leaving, dying and eating memory end in one clear error."""
    with pytest.raises(JobFailed, match=message):
        score(make(tmp_path, function), row("x"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("None", "returned None, not a number"),
        ("'1.5'", "returned '1.5', not a number"),
        ("float('nan')", "returned nan, not a finite number"),
        ("float('-inf')", "returned -inf, not a finite number"),
        ("[1.0]", r"returned \[1.0\], not a number"),
    ],
)
def test_a_result_must_be_a_finite_number(tmp_path: Path, expression: str, message: str) -> None:
    """What is no number is refused with its text."""
    with pytest.raises(JobFailed, match=message):
        score(make(tmp_path, "result"), row(expression))


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    """A numpy scalar counts, so does a boolean."""
    rows = [row("__import__('numpy').float32(0.25)"), row("True")]
    assert score(make(tmp_path, "result", memory_bytes=2 << 30), *rows) == [0.25, 1.0]


def test_secrets_of_the_service_are_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User code sees none of the service's environment."""
    monkeypatch.setenv("REALLOC_TOKEN", "t")
    monkeypatch.setenv("MY_SECRET", "s")
    assert score(make(tmp_path, "environment"), row("x")) == [0.0]


def test_closing_leaves_no_process_behind(tmp_path: Path) -> None:
    """After close the child is gone, and what it started too."""
    [child] = score(make(tmp_path, "process_id"), row("x"))  # type: ignore[misc]
    [grandchild] = score(make(tmp_path, "grandchild"), row("x"))  # type: ignore[misc]
    assert child != os.getpid()
    deadline = time.monotonic() + TEST_SECONDS
    while is_running(int(child)) or is_running(int(grandchild)):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polls other processes; the deadline decides


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import no_such_module\ndef reward(**fields): return 0",
            "ModuleNotFoundError at user.py, line 1",
        ),
        ("def reward(**fields): return 0\nreward = 3", "reward is a int, not a function"),
        (
            "raise SystemExit\ndef reward(**fields): return 0",
            "raised SystemExit at user.py, line 1",
        ),
    ],
)
def test_a_file_that_does_not_load_fails_at_start(tmp_path: Path, code: str, message: str) -> None:
    """What the check at submit cannot see is seen before the first rollout."""
    with pytest.raises(JobFailed, match=message):
        run(make(tmp_path, "reward", code), lambda function: function.start())


def test_rows_after_a_cancelled_call_get_their_own_rewards(tmp_path: Path) -> None:
    """A cancelled call's late answer is never taken for another row's."""

    async def work(function: RewardFunction) -> list[float]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(function.score([row("__import__('time').sleep(1) or 5")]), 0.5)
        return await function.score([row("7")])

    assert run(make(tmp_path, "result"), work) == [7.0]


def test_the_check_at_submit_runs_no_user_code(tmp_path: Path) -> None:
    """A file is parsed, not imported."""
    marker = tmp_path / "ran"
    (tmp_path / "user.py").write_text(f"open({str(marker)!r}, 'w')\ndef reward(**fields): pass")
    check_reward_function("user.py:reward", [tmp_path])
    assert not marker.exists()
    with pytest.raises(InvalidInput):
        check_reward_function("user.py:other", [tmp_path])
