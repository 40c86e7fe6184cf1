"""Writes a Hugging Face folder of a tiny byte-level Llama without weights.

    python examples/arithmetic/make_model.py FOLDER

The tokenizer maps each byte to its own value; three special tokens follow. A job that
trains from random weights needs no more than these files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = 256, 257, 258
SPECIAL_TOKENS = {BOS: "<bos>", EOS: "<eos>", PAD: "<pad>"}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256 + len(SPECIAL_TOKENS),
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # vLLM's attention on CPUs knows head sizes of 32, 64 and more.
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    # So small a model learns twice as fast from wider weights than from the usual 0.02.
    "initializer_range": 0.06,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "dtype": "float32",
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SPECIAL_TOKENS[BOS],
    "eos_token": SPECIAL_TOKENS[EOS],
    "pad_token": SPECIAL_TOKENS[PAD],
    "model_max_length": CONFIG["max_position_embeddings"],
}


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level tokenizer's vocabulary.

    Source: GPT-2's encoder: printable bytes stand for themselves, the others follow from 256.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: 256 + index for index, byte in enumerate(others)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


def make_tokenizer() -> Tokenizer:
    """Byte-level without merges: token id = byte; special tokens 256, 257, 258."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(SPECIAL_TOKENS[token], special=True) for token in (BOS, EOS, PAD)]
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Write config.json and tokenizer.json.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    make_tokenizer().save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
