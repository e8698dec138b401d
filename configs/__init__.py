"""Configurations, each a short readable file."""
