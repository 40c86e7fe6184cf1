"""Checks a deployment from outside: ``realloc doctor``."""
