"""Attacks that try to get a forgotten person back, and the verdict on them."""
