"""What main.py runs: a module for each mode, and workers for several people."""
