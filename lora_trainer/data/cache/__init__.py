"""Encoded pictures, kept by content in memory and on disk."""
