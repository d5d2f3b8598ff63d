"""Adapters on a frozen model: what is trained, how it is attached and detached, and its names in files."""
