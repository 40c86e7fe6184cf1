"""Execution plans from an experiment and a cluster."""
