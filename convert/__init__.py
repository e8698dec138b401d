"""Turns published checkpoints into this project's networks, without running them."""
