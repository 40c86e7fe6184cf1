"""Rollouts by vLLM and rewards by user functions."""
