"""Executes transfer programs over a communicator (torch.distributed)."""
