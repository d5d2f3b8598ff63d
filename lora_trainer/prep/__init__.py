"""Checks and previews of pictures and captions before training."""
