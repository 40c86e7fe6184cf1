import json
import sys
from subprocess import run

import pytest

from examples.arithmetic import make_data, make_model
from examples.arithmetic.reward import exact_answer


def test_every_ground_truth_is_the_sum():
    """Each row of both files is correct arithmetic, and the completion is the answer."""
    for row in [row for rows in make_data.split_rows() for row in rows]:
        left, right = row["prompt"].removesuffix("=").split("+")
        assert int(row["ground_truth"]) == int(left) + int(right)
        assert row["completion"] == row["ground_truth"]


def test_heldout_prompts_are_not_trained_on():
    """No prompt occurs twice, neither within a file nor in both."""
    train, heldout = make_data.split_rows()
    prompts = [row["prompt"] for row in train + heldout]
    assert len(set(prompts)) == len(prompts) == 2500
    assert len(heldout) == 256


def test_the_files_are_the_same_each_time(tmp_path):
    """Two runs of the script write equal files of one JSON object per line."""
    for folder in ("a", "b"):
        run([sys.executable, make_data.__file__, tmp_path / folder], check=True, timeout=60)
    for name in ("train.jsonl", "heldout.jsonl"):
        lines = (tmp_path / "a" / name).read_text()
        assert lines == (tmp_path / "b" / name).read_text()
        assert all({"prompt", "completion", "ground_truth"} == set(json.loads(line))
                   for line in lines.splitlines())  # fmt: skip


@pytest.mark.parametrize(
    ("response", "reward"),
    [("42", 1.0), (" 42\n", 1.0), ("43", 0.0), ("042", 0.0), ("42 43", 0.0), ("4", 0.0), ("", 0.0)],
)
def test_only_the_exact_answer_is_rewarded(response, reward):
    """The reward is 1 for the answer alone and 0 for anything else."""
    assert exact_answer(prompt="07+35=", response=response, ground_truth="42", x=1) == reward


def test_tokens_are_bytes():
    """Token ids are the text's UTF-8 bytes, special tokens come behind, decoding restores."""
    tokenizer = make_model.make_tokenizer()
    text = "07+35=42 \n\x00é→ <s>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert tokenizer.decode([*ids, make_model.EOS], skip_special_tokens=True) == text
    assert tokenizer.get_vocab_size() == make_model.CONFIG["vocab_size"] == 259
    for token, name in make_model.SPECIAL_TOKENS.items():
        assert tokenizer.token_to_id(name) == token


def test_transformers_reads_the_folder(tmp_path):
    """AutoTokenizer and AutoConfig accept what the script writes."""
    transformers = pytest.importorskip("transformers")
    run([sys.executable, make_model.__file__, tmp_path], check=True, timeout=60)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert tokenizer("1+2=", add_special_tokens=False)["input_ids"] == list(b"1+2=")
    assert tokenizer.eos_token_id == config.eos_token_id == make_model.EOS
    assert config.head_dim == 32
