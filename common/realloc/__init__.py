"""RLHF training of language models with parameter reallocation."""
