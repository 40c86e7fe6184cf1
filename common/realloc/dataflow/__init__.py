"""Algorithms as graphs of function calls."""
