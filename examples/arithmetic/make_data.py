"""Writes the sums of two numbers below 50 as training and held-out prompts.

    python examples/arithmetic/make_data.py FOLDER

`train.jsonl` serves both jobs: supervised training reads ``prompt`` and ``completion``, PPO
reads ``prompt`` and ``ground_truth``. No prompt of `heldout.jsonl` is in `train.jsonl`. The
files are the same each time.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

LARGEST = 49
"""Two digits each, and the sum has two digits as well."""
NUM_HELDOUT = 256
SEED = 0


def sum_row(left: int, right: int) -> dict[str, str]:
    """One problem, such as ``07+35=`` with the answer ``42``."""
    answer = f"{left + right:02d}"
    return {
        "prompt": f"{left:02d}+{right:02d}=",
        "completion": answer,
        "ground_truth": answer,
    }


def split_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """All 2,500 problems in a fixed random order, as (train, heldout)."""
    numbers = range(LARGEST + 1)
    rows = [sum_row(left, right) for left in numbers for right in numbers]
    random.Random(SEED).shuffle(rows)
    return rows[NUM_HELDOUT:], rows[:NUM_HELDOUT]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and heldout.jsonl.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = split_rows()
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "heldout.jsonl", heldout)


if __name__ == "__main__":
    main()
