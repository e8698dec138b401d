"""Configurations: each file is a page that a person can read."""
