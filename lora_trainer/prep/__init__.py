"""Getting pictures and captions ready before training."""
