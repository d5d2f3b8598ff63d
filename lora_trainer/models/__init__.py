"""Models: what a checkpoint is, its names in both layouts, and the bundle of modules that training sees."""
