"""Presents results as pictures, tables and a page."""
