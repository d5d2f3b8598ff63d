"""Checks of options, each by itself and in combination."""
