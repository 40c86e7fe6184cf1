"""Frozen nouns that every layer shares; standard library and numpy only."""
