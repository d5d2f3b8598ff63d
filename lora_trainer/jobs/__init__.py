"""Runs: the thread that executes one, the files it writes, and reading them back. No torch."""
