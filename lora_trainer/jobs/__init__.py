"""Runs: the thread that iterates one, what is written down of it, and what is read back. No torch."""
