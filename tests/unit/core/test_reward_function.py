"""The check of a reward function's name, without its code."""

from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.reward_function import check_reward_function

GOOD = "def reward(prompt, response, ground_truth, **fields):\n    return 0.0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder; its parent is not allowed."""
    folder = tmp_path / "allowed"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "good.py").write_text(GOOD)
    (tmp_path / "outside.py").write_text(GOOD)
    return folder


def test_a_function_is_found_by_relative_and_absolute_path(root: Path) -> None:
    """Both ways name the same file; a relative one is looked up below each root."""
    other = root / "sub"
    relative = check_reward_function("good.py:reward", [root, other])
    absolute = check_reward_function(f"{root}/sub/good.py:reward", [root])
    assert relative.path == absolute.path == (root / "sub" / "good.py").resolve()
    assert str(relative) == "good.py:reward"


@pytest.mark.parametrize(
    "given", ["../outside.py", "{parent}/outside.py", "link.py", "dir/outside.py"]
)
def test_no_way_leads_out_of_the_roots(root: Path, given: str) -> None:
    """Neither dots nor absolute paths nor symbolic links to files or folders."""
    (root / "link.py").symlink_to(root.parent / "outside.py")
    (root / "dir").symlink_to(root.parent)
    with pytest.raises(InvalidInput, match="outside the folders that are allowed"):
        check_reward_function(given.format(parent=root.parent) + ":reward", [root])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("good.py", "write path/to/file.py:function"),
        (":reward", "write path/to/file.py:function"),
        ("sub/good.py:", "write path/to/file.py:function"),
        ("sub/good.py:a.b", "write path/to/file.py:function"),
        ("sub/none.py:reward", "there is no file sub/none.py"),
        ("sub:reward", "there is no file sub"),
        ("sub/good.py:other", "has no function 'other' at its top level; it has reward"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(root: Path, text: str, message: str) -> None:
    """Each mistake has its own sentence, under the field that the user wrote."""
    with pytest.raises(InvalidInput, match=message) as caught:
        check_reward_function(text, [root])
    assert caught.value.problems[0].path == "reward.function"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def reward(:\n", "line 1: is not Python"),
        ("\n\x00", "is not Python"),
        ("async def reward(**f): ...", "line 1: reward is async"),
        ("def reward(prompt, ground_truth): ...", "takes no response"),
        ("def reward(prompt, response, ground_truth, /): ...", "positional-only"),
        ("class A:\n  def reward(self, **f): ...", "has no function 'reward'"),
    ],
)
def test_a_wrong_file_says_where(root: Path, code: str, message: str) -> None:
    """Syntax and signature are checked before anything runs."""
    (root / "bad.py").write_text(code)
    with pytest.raises(InvalidInput, match=message):
        check_reward_function("bad.py:reward", [root])
