"""One module for each other trainer: its names for settings, and what it fills in by itself (no torch)."""
