"""Searchers over execution plans and the exact simulator they share."""
