"""Stores networks, results and train states, and computes fingerprints."""
