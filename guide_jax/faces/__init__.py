"""Reads photos, detects faces and aligns them."""
