"""Detects what a model is by key names and shapes."""
