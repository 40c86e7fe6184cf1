"""The reward of the arithmetic example: is the answer exactly right?"""

from typing import Any


def exact_answer(prompt: str, response: str, ground_truth: str, **fields: Any) -> float:
    """1 where the response is the ground truth and nothing else but blanks around it, else 0."""
    return float(response.strip() == ground_truth)
