"""The Python SDK and the `realloc` command."""
