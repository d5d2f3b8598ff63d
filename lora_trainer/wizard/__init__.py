"""Suggests settings from pictures, subject, model and memory; each with its reason. It changes nothing by itself."""
