"""Megatron-core models: inference, training, checkpoints."""
