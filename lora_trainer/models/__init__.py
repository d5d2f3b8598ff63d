"""Models: detection of checkpoints, key names of both layouts, and the bundle of modules for training."""
