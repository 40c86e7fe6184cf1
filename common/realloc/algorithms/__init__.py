"""Advantages, losses and packing: torch tensors in and out, no process groups."""
