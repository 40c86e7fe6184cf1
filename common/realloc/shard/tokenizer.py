"""Text to token ids and back, by the tokenizer.json of a Hugging Face folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from realloc.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenizer:
    """A tokenizer that adds no special tokens by itself."""

    fast: FastTokenizer
    eos_token_ids: tuple[int, ...]
    """Tokens that end a response; the first ends a training row."""

    @staticmethod
    def load(folder: str) -> "Tokenizer":
        """Read tokenizer.json, and the end tokens from config.json.

        Raises:
            InvalidInput: a file is missing or broken, or no end token is named.
        """
        try:
            fast = FastTokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
        except Exception as error:  # the library raises plain Exception
            raise InvalidInput.at("checkpoint", f"{folder}: tokenizer unusable: {error}") from error
        end = config.get("eos_token_id")
        ends = tuple(end) if isinstance(end, list) else (end,)
        if not all(isinstance(token, int) for token in ends):
            raise InvalidInput.at("checkpoint", f"{folder}/config.json names no eos_token_id")
        return Tokenizer(fast=fast, eos_token_ids=ends)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        ids: list[int] = self.fast.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self.fast.decode(tokens, skip_special_tokens=True)
        return text
