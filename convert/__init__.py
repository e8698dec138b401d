"""Converts published checkpoints without executing them, and exports networks back."""
