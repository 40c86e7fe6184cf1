"""Seconds and bytes of calls, transfers and whole plans."""
